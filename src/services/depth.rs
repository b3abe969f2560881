//! How much accepted work waits for a destination.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    config,
    error::{Error, ErrorKind},
    model::backlog::Backlog,
};

/// A client that was refused may come again after this time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What waits for one destination, as it was counted last, and what was accepted since.
#[derive(Debug)]
pub(super) struct Depth {
    destination: &'static str,
    max_rows: i64,
    degraded_after: Duration,
    counted: Mutex<Counted>,
    accepted: AtomicI64,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    backlog: Backlog,
    at: Instant,
}

impl Depth {
    pub(super) fn new(destination: &'static str, config: &config::Outbox) -> Self {
        let counted = Mutex::new(Counted { backlog: Backlog::default(), at: Instant::now() });
        Self {
            destination,
            max_rows: config.max_rows,
            degraded_after: config.degraded_after,
            counted,
            accepted: AtomicI64::new(0),
        }
    }

    /// Refuses further work while too much waits.
    pub(super) fn admit(&self) -> Result<(), Error> {
        let counted = self.counted.lock().backlog.rows;
        if counted + self.accepted.load(Ordering::Relaxed) < self.max_rows {
            return Ok(());
        }
        let message = format!(
            "as much accepted work waits for the {} as outbox.max_rows allows",
            self.destination
        );
        Err(Error::new(ErrorKind::Overloaded, message).with_retry_after(RETRY_AFTER))
    }

    pub(super) fn accepted(&self, rows: usize) {
        self.accepted.fetch_add(i64::try_from(rows).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Remembers what `count` found. What is accepted while it counts may be counted twice, never
    /// missed.
    pub(super) async fn count(
        &self,
        count: impl AsyncFnOnce(i64) -> Result<Backlog, Error>,
    ) -> Option<Backlog> {
        let before = self.accepted.load(Ordering::Relaxed);
        let backlog = count(self.max_rows).await.ok()?;
        self.accepted.fetch_sub(before, Ordering::Relaxed);
        *self.counted.lock() = Counted { backlog, at: Instant::now() };
        Some(backlog)
    }

    /// What waits, as it was counted last.
    pub(super) fn backlog(&self) -> Backlog {
        let counted = *self.counted.lock();
        let oldest = counted.backlog.oldest.map(|oldest| oldest + counted.at.elapsed());
        Backlog { oldest, ..counted.backlog }
    }

    /// Whether some of it has waited for so long that the service is degraded.
    pub(super) fn is_late(&self) -> bool {
        self.backlog().oldest.is_some_and(|oldest| oldest > self.degraded_after)
    }
}
