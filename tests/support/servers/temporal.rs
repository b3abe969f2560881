//! A separate Temporal server for a test.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::{Process, free_port, listens};

/// A developer's own Temporal profile must not affect the tests.
const PLAIN: [&str; 2] = ["--disable-config-file", "--disable-config-env"];

/// A Temporal server that keeps its data across a restart.
pub(crate) struct Temporal {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Temporal {
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let mut server = Self { folder, port: free_port(), process: None };
        server.up().await;
        server
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn up(&mut self) {
        let mut command = Command::new("temporal");
        command
            .args(["server", "start-dev", "--headless", "--ip", "127.0.0.1"])
            .args(PLAIN)
            .args(["--log-level", "error", "--port", &self.port.to_string(), "--db-filename"])
            .arg(self.folder.path().join("temporal.db"))
            .stderr(Stdio::null());
        let process = Process::start(&mut command, "scripts/install puts it into ~/go/bin");
        self.process = Some(process);
        listens("Temporal", self.port).await;
    }

    pub(crate) fn down(&mut self) {
        if let Some(process) = self.process.take() {
            process.end("-TERM");
        }
    }

    /// The output of the `temporal` command for it.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = Command::new("temporal")
            .args(arguments)
            .args(PLAIN)
            .args(["--address", &self.address()])
            .output()
            .expect("temporal runs");
        String::from_utf8(output.stdout).expect("it is text")
    }
}

impl Drop for Temporal {
    fn drop(&mut self) {
        self.down();
    }
}
