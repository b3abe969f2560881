//! Signals, and the order in which the parts of the program stop.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Draining, config::Server, manager::ConnectionManager, tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// Signals that arrive closer together than this count as one.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// The result of the program, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Stopped as asked, with everything ended in time.
    Clean,
    /// Something failed.
    Failed,
    /// A connection that start needs cannot be established.
    ConnectionUnavailable,
    /// The program cannot listen on the port.
    CannotListen,
    /// Stopped as asked, but something had to be cut off.
    CutOff,
    /// A backend speaks another protocol or version, or TLS fails.
    NotUnderstood,
    /// A backend refuses the login, or the login lacks rights.
    NotPermitted,
    /// The configuration has problems.
    BadConfig,
    /// Asked to stop twice.
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
    pub tasks: Tasks,
    /// Cancelled when the listener stops accepting clients and streams end.
    pub stop_serving: CancellationToken,
    /// Cancelled when background work ends.
    pub stop_work: CancellationToken,
}

/// The running parts of the program, which have to be stopped in order.
#[derive(Debug)]
pub struct Running {
    /// Tells load balancers that the instance stops.
    pub draining: Draining,
    /// The listener. True when every request was answered.
    pub serving: Option<JoinHandle<bool>>,
    /// Background work, by name.
    pub working: Vec<(&'static str, JoinHandle<()>)>,
    /// The connections.
    pub manager: ConnectionManager,
}

impl Running {
    /// Completes if the listener ends by itself, from which the program cannot recover.
    pub async fn listener_ended(&mut self) {
        if let Some(serving) = &mut self.serving {
            let _ended = serving.await.is_ok();
        }
        self.serving = None;
    }
}

impl Lifecycle {
    /// No tasks yet; `metrics` counts their restarts.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self { tasks: Tasks::new(metrics.tasks()), ..Self::default() }
    }

    /// Stops everything, in this order: report not ready → keep serving for `drain_delay` → accept
    /// no new requests → end background work → close the connections, in reverse order of their
    /// dependencies. False when something had to be cut off after `shutdown_grace`.
    pub async fn stop(&self, running: &mut Running, config: &Server) -> bool {
        running.draining.begin();
        sleep(config.drain_delay).await;
        let deadline = Instant::now() + config.shutdown_grace;
        let left =
            || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));

        self.stop_serving.cancel();
        let answered = match &mut running.serving {
            Some(serving) => serving.await.unwrap_or(false),
            None => false,
        };
        if !answered {
            tracing::warn!("requests did not end in time and were cut off");
        }
        self.stop_work.cancel();
        let mut worked = true;
        for (part, task) in &mut running.working {
            worked &= stopped_in_time(part, left(), async {
                let _ended = task.await.is_ok();
            })
            .await;
        }
        let closed = stopped_in_time("a connection", left(), running.manager.close()).await;
        self.tasks.close();
        let ended = stopped_in_time("a background task", left(), self.tasks.wait()).await;
        tracing::info!("stopped");
        answered && worked && closed && ended
    }
}

/// The signals that ask the program to stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Replaces the default handling of the signals, which ends the process.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a second signal that is not part of the first. Tools that end a process may signal
    /// it and its group at the same time; that does not count as a second request.
    pub async fn again(&mut self) -> &'static str {
        let first = Instant::now();
        loop {
            let name = self.next().await;
            if first.elapsed() > SAME_SIGNAL {
                return name;
            }
        }
    }

    /// Waits for the next signal; returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The signal that asks the program to reload its configuration.
#[derive(Debug)]
pub struct ReloadSignal(Signal);

impl ReloadSignal {
    /// Replaces the default handling of the signal, which ends the process.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// Waits for `part` to stop, and names it in the log if it does not. False when it was cut off.
async fn stopped_in_time(
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
