//! A separate Redis server for a test.

use std::process::Command;

use tempfile::TempDir;

use super::{Process, free_port, listens};

/// Settings that keep the data across a restart, also after `kill -9`.
const DURABLE: [&str; 2] = ["--appendonly", "yes"];

/// A Redis server that can be stopped and started.
pub(crate) struct Redis {
    // Ends before its folder is removed.
    process: Option<Process>,
    folder: TempDir,
    pub(crate) port: u16,
    arguments: Vec<String>,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments, such as `--requirepass x`.
    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        Self::start_on(free_port(), arguments).await
    }

    pub(crate) async fn start_on(port: u16, arguments: &[&str]) -> Self {
        let arguments = [&DURABLE, arguments].concat();
        Self::start_in(TempDir::new().expect("a folder"), port, &arguments).await
    }

    /// With only these arguments; the first may be a configuration file in the folder.
    pub(crate) async fn start_in(folder: TempDir, port: u16, arguments: &[&str]) -> Self {
        let mut redis = Self { process: None, folder, port, arguments: owned(arguments) };
        redis.up().await;
        redis
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub(crate) async fn up(&mut self) {
        let mut command = Command::new("redis-server");
        command
            .args(&self.arguments)
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &self.port.to_string()])
            .current_dir(self.folder.path());
        let process = Process::start(&mut command, "apt-get install -y redis-server");
        self.process = Some(process);
        listens("Redis", self.port).await;
    }

    /// Kills it and restarts it with other additional arguments. It loses its data.
    pub(crate) async fn restart_with(&mut self, arguments: &[&str]) {
        self.down();
        self.arguments = owned(&[&["--appendonly", "no"], arguments].concat());
        self.up().await;
    }

    /// The answer to a command.
    pub(crate) async fn command<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = ::redis::Client::open(self.url()).expect("a URL");
        let mut connection =
            client.get_multiplexed_async_connection().await.expect("Redis answers");
        let mut command = ::redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.expect("it obeys")
    }

    pub(crate) fn down(&mut self) {
        drop(self.process.take());
    }

    /// Its data is gone after the restart.
    pub(crate) fn forget_everything(&mut self) {
        self.down();
        self.folder = TempDir::new().expect("a folder");
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        let process = self.process.as_ref().expect("it is up");
        process.signal(if frozen { "-STOP" } else { "-CONT" });
    }
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}
