//! The program under measurement.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use reqwest::Client;
use serde_json::Value;

use crate::BARE;

pub(crate) struct Server {
    child: Child,
    pub(crate) base: String,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _already_dead = self.child.kill().is_err();
        let _reaped = self.child.wait().is_ok();
    }
}

impl Server {
    pub(crate) fn program(variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentarea-api"));
        command.env_clear().envs(variables.iter().copied());
        command.env("AGENTAREA_SERVER__HOST", "127.0.0.1").env("PORT", "0");
        Self::start(command)
    }

    pub(crate) fn bare() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.env(BARE, "1");
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let file = fs::File::create(&log).expect("a log");
        let child = command.current_dir(folder.path()).stderr(file).stdout(Stdio::null()).spawn();
        let mut server = Self { child: child.expect("it starts"), base: String::new(), folder };
        server.base = loop {
            let text = server.log();
            // The line may be half written.
            let (_, rest) = text.split_once("listening on ").unwrap_or_default();
            if let Some((base, _)) = rest.split_once([',', ' ', '\n']) {
                break base.to_owned();
            }
            std::thread::yield_now();
        };
        server
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) async fn ready(&self) {
        while !self.log().contains(" ready") {
            tokio::task::yield_now().await;
        }
    }

    /// Processor time used so far, in clock ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("Linux");
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
    }

    pub(crate) fn rss_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    pub(crate) async fn post(&self, http: &Client, path: &str, body: &Value) -> u16 {
        let request = http.post(format!("{}{path}", self.base)).json(body);
        request.send().await.map_or(0, |answer| answer.status().as_u16())
    }
}
