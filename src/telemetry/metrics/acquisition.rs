//! The time that calls wait before they can begin.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Time that calls spent waiting for a backend that was being built, or for a pooled connection.
/// Calls that find both ready do not wait.
#[derive(Debug, Default)]
pub struct Acquisition {
    total_nanos: AtomicU64,
    max_nanos: AtomicU64,
}

impl Acquisition {
    /// Records the wait of a call.
    pub fn add(&self, waited: Duration) {
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.total_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.max_nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    /// The mean wait over `calls`.
    #[must_use]
    pub fn mean(&self, calls: u64) -> Duration {
        Duration::from_nanos(self.total_nanos.load(Ordering::Relaxed) / calls.max(1))
    }

    /// The longest wait.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_nanos.load(Ordering::Relaxed))
    }
}
