//! Temporal, and the stub that only answers like it.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    support::{Process, eventually, free_port, listens},
    usage::{Meter, Watched},
};

/// A developer's own Temporal profile must not affect the measurement.
const PLAIN: [&str; 2] = ["--disable-config-file", "--disable-config-env"];

/// The share of a core that an idle server uses at most, over this time.
const SETTLED: f64 = 0.1;
const SETTLING: Duration = Duration::from_secs(1);
const LONGEST_SETTLING: Duration = Duration::from_secs(15);

/// A frontend that nobody else uses.
pub(crate) struct Frontend {
    /// `host:port`.
    pub(crate) address: String,
    process: Process,
    _folder: TempDir,
}

impl Frontend {
    /// Starts Temporal's development server, with a database in a file.
    pub(crate) async fn temporal() -> Self {
        let (folder, port) = (TempDir::new().expect("a folder"), free_port());
        let mut command = Command::new("temporal");
        command
            .args(["server", "start-dev", "--headless", "--ip", "127.0.0.1"])
            .args(PLAIN)
            .args(["--log-level", "error", "--port", &port.to_string(), "--db-filename"])
            .arg(folder.path().join("temporal.db"))
            .stderr(Stdio::null());
        let process = Process::start(&mut command, "scripts/install puts it into ~/go/bin");
        let server = Self { address: format!("127.0.0.1:{port}"), process, _folder: folder };
        // The port answers before the namespace exists.
        eventually("Temporal has its namespace", async || server.has_namespace().then_some(()))
            .await;
        server.settle().await;
        server
    }

    /// Waits until what a start leaves to do is done.
    async fn settle(&self) {
        let begin = Instant::now();
        while begin.elapsed() < LONGEST_SETTLING {
            let meter = Meter::start(&[self.watched()]);
            sleep(SETTLING).await;
            let used = meter.stop();
            if used.share_of_a_core("Temporal") < SETTLED {
                return;
            }
        }
    }

    fn has_namespace(&self) -> bool {
        self.ask(&["operator", "namespace", "describe", "--namespace", "default"])
    }

    /// Starts the stub, whose workflows end `end_after`, such as `5s`, after their start.
    pub(crate) async fn stub(program: &Path, end_after: Option<&str>) -> Self {
        let (folder, port) = (TempDir::new().expect("a folder"), free_port());
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.args(["-addr", &address]).stderr(Stdio::null());
        if let Some(end_after) = end_after {
            command.args(["-end-after", end_after]);
        }
        let process = Process::start(&mut command, "PEERS_BIN names the folder with temporal-stub");
        listens("the stub of Temporal", port).await;
        Self { address, process, _folder: folder }
    }

    pub(crate) fn watched(&self) -> Watched {
        Watched { name: "Temporal", id: self.process.id() }
    }

    /// Runs the `temporal` command for it; returns whether it succeeded.
    pub(crate) fn ask(&self, arguments: &[&str]) -> bool {
        let mut command = Command::new("temporal");
        command.args(arguments).args(PLAIN).args(["--address", &self.address]);
        let output = command.output().expect("temporal runs");
        output.status.success()
    }
}
