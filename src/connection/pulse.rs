//! Detects whether the probes of a connection still run.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Intervals without a beat after which the probes count as stalled.
const MISSED: u32 = 3;

/// Beats in every cycle of the probes.
pub(super) struct Pulse {
    created: Instant,
    /// When it is to be believed, in milliseconds after `created`, that the probes do not run. Of the
    /// interval at which they ran when it last beat: a shorter one says nothing of a pause that began
    /// before.
    stalled_at_millis: AtomicU64,
    /// The interval has changed.
    new_pace: Notify,
    began: AtomicBool,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            created: now,
            stalled_at_millis: AtomicU64::new(0),
            new_pace: Notify::new(),
            began: AtomicBool::new(false),
        }
    }

    /// The probes begin.
    pub(super) fn begin(&self, interval: Duration) {
        self.beat(interval);
        self.began.store(true, Ordering::Relaxed);
    }

    /// The probes run, at this interval.
    pub(super) fn beat(&self, interval: Duration) {
        let stalled_at = self.created.elapsed().saturating_add(interval * MISSED);
        let millis = u64::try_from(stalled_at.as_millis()).unwrap_or(u64::MAX);
        self.stalled_at_millis.store(millis, Ordering::Relaxed);
    }

    /// Waits until the next probe is due, or the interval changes.
    pub(super) async fn pause_until(&self, next: Instant) {
        tokio::select! {
            () = sleep_until(next) => {}
            () = self.new_pace.notified() => {}
        }
    }

    /// The interval has changed.
    pub(super) fn new_pace(&self) {
        self.new_pace.notify_one();
    }

    /// True when the probes have started and no longer run.
    pub(super) fn has_stalled(&self) -> bool {
        let stalled_at = Duration::from_millis(self.stalled_at_millis.load(Ordering::Relaxed));
        self.began.load(Ordering::Relaxed) && self.created.elapsed() > stalled_at
    }
}
