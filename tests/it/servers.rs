//! Servers of a test's own, to be stopped and started as the test wants.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::support::{eventually, free_port, signal};

/// Ends a server in the way it likes, and waits for it.
fn end(child: &mut Option<Child>, how: &str) {
    if let Some(mut child) = child.take() {
        signal(&child, how);
        child.wait().unwrap();
    }
}

async fn listens(what: &str, port: u16) {
    eventually(what, async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
}

/// The newest of the versions that Debian keeps side by side.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).max();
    newest.expect("PostgreSQL is missing: apt-get install -y postgresql")
}

/// It refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let is_root = fs::metadata("/proc/self")
        .is_ok_and(|itself| std::os::unix::fs::MetadataExt::uid(&itself) == 0);
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

/// A `PostgreSQL` server.
pub(crate) struct Postgres {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Its user makes the data folder in ours.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let made = as_postgres(&postgres_programs().join("initdb"))
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Self { folder, port: free_port(), child: None };
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
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let child = as_postgres(&postgres_programs().join("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        listens("PostgreSQL listens", self.port).await;
    }

    /// As a crash: what was committed has to be found again.
    pub(crate) fn crash(&mut self) {
        end(&mut self.child, "-QUIT");
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

/// A Temporal server that keeps what it has over a restart.
pub(crate) struct Temporal {
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Temporal {
    pub(crate) async fn start() -> Self {
        let mut server =
            Self { folder: tempfile::tempdir().unwrap(), port: free_port(), child: None };
        server.up().await;
        server
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) async fn up(&mut self) {
        let child = Command::new("temporal")
            .args(["server", "start-dev", "--headless", "--ip", "127.0.0.1"])
            .args(["--disable-config-file", "--disable-config-env", "--log-level", "error"])
            .args(["--port", &self.port.to_string(), "--db-filename"])
            .arg(self.folder.path().join("temporal.db"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("temporal is missing: scripts/install puts it into ~/go/bin");
        self.child = Some(child);
        listens("Temporal listens", self.port).await;
    }

    pub(crate) fn down(&mut self) {
        end(&mut self.child, "-TERM");
    }

    /// What the `temporal` command says of it.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let output = Command::new("temporal")
            .args(arguments)
            .args(["--disable-config-file", "--disable-config-env", "--address", &self.address()])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Temporal {
    fn drop(&mut self) {
        self.down();
    }
}
