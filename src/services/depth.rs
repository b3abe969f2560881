//! The amount of accepted work that waits for a destination.

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
    telemetry::metrics::{Destination, Metrics},
};

/// The interval between counts, unless counting takes long.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// Counting may take a twentieth of the time, unless this makes the count too old.
const COUNT_SHARE: u32 = 20;
const OLDEST_COUNT: Duration = Duration::from_secs(5);
/// The time after which a refused client may retry.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The work that waits for one destination, as last counted, and the work accepted since.
#[derive(Debug)]
pub(super) struct Depth {
    destination: Destination,
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

/// A count in progress.
pub(super) struct Counting {
    pub(super) most: i64,
    begun: Instant,
    /// The work accepted between the previous count and this one.
    accepted: i64,
}

impl Depth {
    pub(super) fn new(destination: Destination, config: &config::Outbox) -> Self {
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
            self.destination.as_words()
        );
        Err(Error::new(ErrorKind::Overloaded, message).with_retry_after(RETRY_AFTER))
    }

    pub(super) fn accepted(&self, rows: usize) {
        self.accepted.fetch_add(i64::try_from(rows).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Begins a count, which goes no further than one beyond [`Counting::most`].
    pub(super) fn begin_count(&self) -> Counting {
        let accepted = self.accepted.load(Ordering::Relaxed);
        Counting { most: self.max_rows, begun: Instant::now(), accepted }
    }

    /// Applies the result of a count, if it succeeded, to the limit and the metrics. Work accepted
    /// during the count may be counted twice, never missed. Returns the pause before the next
    /// count.
    pub(super) fn counted(
        &self,
        counting: &Counting,
        counted: Option<Backlog>,
        metrics: &Metrics,
    ) -> Duration {
        // Outages are logged by the probes of the database.
        if let Some(backlog) = counted {
            self.accepted.fetch_sub(counting.accepted, Ordering::Relaxed);
            *self.counted.lock() = Counted { backlog, at: Instant::now() };
            metrics.show_outbox(self.destination, &backlog);
        }
        (counting.begun.elapsed() * COUNT_SHARE).clamp(COUNT_EVERY, OLDEST_COUNT)
    }

    /// The waiting work, as last counted.
    pub(super) fn backlog(&self) -> Backlog {
        let counted = *self.counted.lock();
        let oldest = counted.backlog.oldest.map(|oldest| oldest + counted.at.elapsed());
        Backlog { oldest, ..counted.backlog }
    }

    /// True when some of it has waited so long that the service is degraded.
    pub(super) fn is_late(&self) -> bool {
        self.backlog().oldest.is_some_and(|oldest| oldest > self.degraded_after)
    }
}
