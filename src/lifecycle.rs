//! Signals, and the tokens that stop the parts of the program in order.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Signals closer together are one.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// How the program ended, as the shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to stop, and everything ended in time.
    Clean,
    /// Something failed.
    Failed,
    /// A connection that start needs cannot be made.
    ConnectionUnavailable,
    /// The port cannot be listened on.
    CannotListen,
    /// It was asked to stop, and something had to be cut off.
    CutOff,
    /// What answers does not speak as this program does: another version, or TLS.
    NotUnderstood,
    /// A login was refused, or lacks rights.
    NotPermitted,
    /// The configuration has problems.
    BadConfig,
    /// It was asked to stop twice.
    Impatient,
}

impl Exit {
    /// The exit code; those of `sysexits.h` where it has one.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Failed => 1,
            Self::ConnectionUnavailable => 69,
            Self::CannotListen => 71,
            Self::CutOff => 75,
            Self::NotUnderstood => 76,
            Self::NotPermitted => 77,
            Self::BadConfig => 78,
            Self::Impatient => 130,
        }
    }
}

/// The tasks of the program and the tokens that stop them.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    /// Every task that outlives its creator.
    pub tasks: TaskTracker,
    /// The listener accepts no more clients, and streams end.
    pub stop_serving: CancellationToken,
    /// Followers and runners end.
    pub stop_work: CancellationToken,
}

/// The signals that ask the program to stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from their default, which ends the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one that comes later than a moment after the first. Tools that end a process may
    /// signal it and its group at once, which is not impatience.
    pub async fn again(&mut self) -> &'static str {
        let first = Instant::now();
        loop {
            let name = self.next().await;
            if first.elapsed() > SAME_SIGNAL {
                return name;
            }
        }
    }

    /// Waits for the next one; gives its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The signal that asks the program to read its configuration again.
#[derive(Debug)]
pub struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Takes the signal over from its default, which ends the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Waits for `part` to stop, names it in the log if it does not. False when it was cut off.
pub async fn stopped_in_time(
    part: &'static str,
    limit: Duration,
    stopping: impl Future<Output = ()>,
) -> bool {
    let in_time = timeout(limit, stopping).await.is_ok();
    if !in_time {
        tracing::warn!(part, "{part} did not stop in time and is cut off");
    }
    in_time
}
