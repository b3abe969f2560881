//! The state of a connection at one moment.

use std::time::Duration;

use strum::IntoStaticStr;

use super::PoolStatus;
pub use crate::model::circuit::Circuit;
use crate::{error::ErrorKind, model::time::Timestamp};

/// The stage of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Service {
    /// It has not been needed yet.
    NotInitialized,
    /// It is being established for the first time.
    Initializing,
    /// It works.
    Initialized,
    /// It does not work.
    Unavailable,
    /// It was closed at shutdown.
    Closed,
}

impl Service {
    /// Stable name, as it appears in the health report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The last probe.
#[derive(Clone, Copy, Debug)]
pub struct ProbeReport {
    /// True when it succeeded.
    pub ok: bool,
    /// Time since it ended.
    pub age: Duration,
    /// How long it took.
    pub latency: Duration,
    /// Failed probes in a row.
    pub failures_in_row: u32,
}

/// The state of a connection, without its history.
#[derive(Clone, Debug)]
pub struct ConnectionReport {
    /// Its name.
    pub name: &'static str,
    /// The backend in use.
    pub backend: String,
    /// Whether an outage makes the instance unhealthy.
    pub required: bool,
    /// The stage of its life.
    pub service: Service,
    /// Whether calls pass.
    pub circuit: Circuit,
    /// How full the retry budget is, 0 to 1.
    pub retry_budget: f64,
    /// True from the first success or failure on.
    pub decided: bool,
    /// True when its failures have reached the threshold.
    pub down: bool,
    /// Backends built.
    pub builds: u64,
    /// Backends that replaced another one.
    pub rebuilds: u64,
    /// Backends that were built and never used, because the settings were replaced meanwhile, the
    /// change was cancelled, or another connection could not change with this one.
    pub discarded: u64,
    /// Builds that failed.
    pub build_failures: u64,
    /// Backends that exist now.
    pub live: usize,
    /// Whether an old backend is being replaced by a new one.
    pub swapping: bool,
    /// Calls served.
    pub uses: u64,
    /// Calls being served.
    pub in_use: usize,
    /// Mean time until a call had the backend, and a connection of its pool.
    pub acquire_mean: Duration,
    /// The longest time until a call had them.
    pub acquire_max: Duration,
    /// The state of its pool.
    pub pool: Option<PoolStatus>,
    /// The last probe.
    pub probe: Option<ProbeReport>,
    /// Class of the last error, and when it happened.
    pub last_error: Option<(ErrorKind, Timestamp)>,
    /// The number of recoveries.
    pub recoveries: u64,
    /// True when the probe loop has not run for three intervals.
    pub stalled: bool,
}
