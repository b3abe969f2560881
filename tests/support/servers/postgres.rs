//! A separate `PostgreSQL` server for a test.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{Process, free_port, listens};

/// A `PostgreSQL` server that can be stopped and started.
pub(crate) struct Postgres {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        // The server's user creates the data folder inside ours.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("it is ours");
        let made = as_postgres(&programs().join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"])
            .arg(folder.path().join("data"))
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { folder, port: free_port(), process: None };
        server.up().await;
        server
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    pub(crate) async fn up(&mut self) {
        let log = self.folder.path().join("log");
        let log = fs::File::options().create(true).append(true).open(log).expect("a log");
        let mut command = as_postgres(&programs().join("postgres"));
        command
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .stderr(log);
        self.process = Some(Process::start(&mut command, "apt-get install -y postgresql"));
        listens("PostgreSQL", self.port).await;
    }

    /// Simulates a crash, after which committed data must be recovered.
    pub(crate) fn crash(&mut self) {
        // This signal also ends its child processes, which a kill would leave behind.
        if let Some(process) = self.process.take() {
            process.end("-QUIT");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
        if std::thread::panicking() {
            self.folder.disable_cleanup(true);
            eprintln!("what PostgreSQL had is kept in {}", self.folder.path().display());
        }
    }
}

/// The newest of the versions that Debian has installed side by side.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).max();
    newest.expect("PostgreSQL is missing: apt-get install -y postgresql")
}

/// `PostgreSQL` refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let is_root = fs::metadata("/proc/self").is_ok_and(|itself| itself.uid() == 0);
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}
