//! The program, started as an operator starts it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use reqwest::Client;
use tempfile::TempDir;

use super::{DEADLINE, away, eventually, http_client, rtt, small_pool};

/// The settings for a start of the program.
pub(crate) struct Setup {
    program: PathBuf,
    folder: TempDir,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    /// The distance to the servers.
    rtt: Duration,
}

impl Setup {
    /// Embedded defaults in a separate folder, with fast probes and no drain delay.
    pub(crate) fn new() -> Self {
        ["event_broker", "execution_service", "database"]
            .iter()
            .fold(Self::as_shipped(), |setup, connection| {
                let setup = match small_pool() {
                    Some(size) if *connection != "execution_service" => {
                        setup.set(&format!("{connection}.pool.max_size"), &size.to_string())
                    }
                    _ => setup,
                };
                setup
                    .set(&format!("{connection}.probe.interval"), "\"200ms\"")
                    .set(&format!("{connection}.probe.timeout"), "\"200ms\"")
            })
            .set("server.drain_delay", "\"0s\"")
            .set("executions.follow_interval", "\"50ms\"")
    }

    /// Embedded defaults in a separate folder, with only the address changed.
    pub(crate) fn as_shipped() -> Self {
        Self::bare().set("server.host", "\"127.0.0.1\"").set("server.port", "0")
    }

    fn bare() -> Self {
        Self {
            program: env!("CARGO_BIN_EXE_agentarea-api").into(),
            folder: tempfile::tempdir().expect("a folder"),
            arguments: Vec::new(),
            variables: Vec::new(),
            rtt: rtt(),
        }
    }

    /// Sets a key; text is quoted, as in TOML.
    pub(crate) fn set(self, key: &str, value: &str) -> Self {
        let name = format!("AGENTAREA_{}", key.replace('.', "__").to_uppercase());
        self.variable(&name, value.trim_matches('"'))
    }

    /// Uses the default probe intervals and timeouts.
    pub(crate) fn with_default_probes(mut self) -> Self {
        self.variables.retain(|(name, _)| !name.contains("__PROBE__"));
        self
    }

    /// Sets a variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds arguments.
    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Runs a different program.
    pub(crate) fn program(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    /// The folder it runs in.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the configuration file of its environment.
    pub(crate) fn write_config(&self, text: &str) {
        let folder = self.path().join("config");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("development.toml"), text).expect("a file");
    }

    /// Puts all servers so far away.
    pub(crate) fn away(mut self, rtt: Duration) -> Self {
        self.rtt = rtt;
        self
    }

    /// A variable as the program sees it.
    fn seen(&self, name: &str, value: &str) -> String {
        match name {
            "REDIS_URL" | "DATABASE_URL" | "TEMPORAL_ADDRESS" => away(value, self.rtt),
            // A probe takes some round trips, which the short ones of these tests have no room for.
            _ if name.contains("__PROBE__") => {
                let millis = value.strip_suffix("ms").and_then(|millis| millis.parse().ok());
                let longer = |millis| Duration::from_millis(millis) + self.rtt * 10;
                millis
                    .map_or(value.to_owned(), |millis| format!("{}ms", longer(millis).as_millis()))
            }
            _ => value.to_owned(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, self.seen(name, value))))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end; returns its output.
    pub(crate) async fn output(&self) -> Output {
        self.output_of(&[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn output_of(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.command());
        command.args(arguments).kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, command.output()).await;
        output.expect("it ends in time").expect("it runs")
    }

    /// Runs the program to its end; returns the exit code and the log.
    pub(crate) async fn run(self) -> (Option<i32>, String) {
        let mut service = self.launch();
        (service.exit_code().await, service.log())
    }

    /// Starts the program and waits until it listens.
    pub(crate) async fn start(self) -> Service {
        self.launch().listening().await
    }

    /// The same with log files instead of standard error.
    pub(crate) async fn start_with_log_files(self) -> Service {
        let mut service = self
            .set("telemetry.log_dir", "\"logs\"")
            .set("telemetry.log_rotation", "\"never\"")
            .launch();
        service.log = service.path().join("logs/agentarea-api.log");
        service.listening().await
    }

    /// Starts the program without waiting.
    pub(crate) fn launch(self) -> Service {
        let log = self.path().join("log");
        // The log of an earlier start is kept.
        let files = fs::read_dir(self.path()).expect("its folder").count();
        let _first = fs::rename(&log, log.with_extension(files.to_string())).is_err();
        let file = File::create(&log).expect("a log");
        let child = self.command().stdout(Stdio::null()).stderr(file).spawn();
        let child = child.expect("the program starts");
        Service {
            setup: self,
            child,
            log,
            base: String::new(),
            http: http_client().build().expect("a client"),
        }
    }
}

/// A running program, killed when dropped.
pub(crate) struct Service {
    setup: Setup,
    pub(crate) child: Child,
    log: PathBuf,
    /// `http://host:port`, once it listens.
    pub(crate) base: String,
    pub(crate) http: Client,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_dead = self.child.kill().is_err();
        let _reaped = self.child.wait().is_ok();
        if std::thread::panicking() {
            eprintln!("--- log of the service\n{}", self.log());
        }
    }
}

impl Service {
    /// Waits until it listens.
    pub(crate) async fn listening(mut self) -> Self {
        self.base = eventually("the service listens", async || {
            let text = self.log();
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                panic!("it ended with {status}:\n{text}");
            }
            let (_, rest) = text.split_once("listening on ")?;
            // The line may be half written.
            Some(rest.split_once([',', ' ', '"', '\n'])?.0.to_owned())
        })
        .await;
        self
    }

    /// The folder it runs in.
    pub(crate) fn path(&self) -> &Path {
        self.setup.path()
    }

    /// Rewrites the configuration file.
    pub(crate) fn write_config(&self, text: &str) {
        self.setup.write_config(text);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it without warning; returns the settings for another start.
    pub(crate) fn kill(mut self) -> Setup {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        std::mem::replace(&mut self.setup, Setup::bare())
    }

    /// Waits for it to end; returns the exit code.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        let ended = async || self.child.try_wait().expect("it is ours");
        let status: ExitStatus = eventually("the process ends", ended).await;
        status.code()
    }

    /// A value of its memory from Linux, in KiB: `VmRSS` for the current size, `VmHWM` for the
    /// peak.
    pub(crate) fn memory_kib(&self, line: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs on Linux");
        let value = status.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(':'));
        let value = value.expect("the line is there").trim().trim_end_matches(" kB");
        value.parse().expect("a number")
    }
}
