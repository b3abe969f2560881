//! The circuit breaker: stops calling a backend that fails, and tries again by itself.
//!
//! [`Core`] is the state machine. [`Breaker`] shares one among all calls: whether calls pass is one
//! atomic load, a good result is one atomic addition, and the lock is held only for what may change
//! something.
//!
//! ```text
//!            rate reached                 time elapsed, call comes
//!  closed ─────────────────▶ open ─────────────────────────────▶ half-open
//!    ▲                       ▲ │ a probe is good                   │    │
//!    │                       └─┼──────── a trial fails ◀───────────┘    │
//!    └─────────────────────────┴──────── enough trials are good ◀───────┘
//! ```

mod state;

use std::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::state::{Core, Ticket};
use super::report::Circuit;
use crate::{config::CircuitBreaker as Policy, model::chance::chance};

/// The verdict of a finished call on the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// It failed, and the backend is to blame.
    pub failed: bool,
    /// It took as long as a slow call.
    pub slow: bool,
}

/// A change of the breaker's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The state that ended.
    pub from: Circuit,
    /// The state that began.
    pub to: Circuit,
    /// Why.
    pub cause: String,
    /// How long the state that ended had lasted.
    pub lasted: Duration,
}

/// Calls do not pass; a retry makes sense after this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Never longer than `max_open_for`.
    pub retry_after: Duration,
}

/// An operator's override of the breaker, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// Refuse every call.
    Open,
    /// Pass every call.
    Closed,
    /// Decide by results, from closed.
    Automatic,
}

/// A breaker that all calls of a connection share.
#[derive(Debug)]
pub struct Breaker {
    /// The period, and in the lowest bit whether calls pass without being asked.
    passing: AtomicU64,
    /// Good results that the window has not counted yet. They belong to its current span.
    good: AtomicU32,
    /// When that span ends, in nanoseconds since `epoch`.
    span_ends: AtomicU64,
    epoch: Instant,
    core: Mutex<Core>,
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: Policy, now: Instant) -> Self {
        let core = Core::new(policy, now);
        Self {
            passing: AtomicU64::new(packed(&core)),
            good: AtomicU32::new(0),
            span_ends: AtomicU64::new(nanos(now, core.span_ends())),
            epoch: now,
            core: Mutex::new(core),
        }
    }

    /// Admits or refuses a call.
    ///
    /// # Errors
    /// When calls do not pass, with the time after which trying again makes sense.
    #[inline]
    pub fn admit(&self, now: Instant) -> (Result<Pass<'_>, Refusal>, Option<Change>) {
        let packed = self.passing.load(Ordering::Acquire);
        if packed & 1 == 1 {
            let ticket = Ticket { period: packed >> 1, trial: false };
            return (Ok(Pass { breaker: self, ticket }), None);
        }
        self.ask(now)
    }

    #[cold]
    fn ask(&self, now: Instant) -> (Result<Pass<'_>, Refusal>, Option<Change>) {
        let (ticket, change) = self.locked(|core| core.admit(now));
        (ticket.map(|ticket| Pass { breaker: self, ticket }), change)
    }

    /// Counts a good result without the lock, unless the window must be updated.
    ///
    /// A change of period between the look at it and the count leaves one good call too many in the
    /// window, which is less than what a lock for each call costs.
    fn counts_good(&self, ticket: Ticket, now: Instant) -> bool {
        let same_period = self.passing.load(Ordering::Acquire) == ticket.period << 1 | 1;
        let same_span = nanos(self.epoch, now) < self.span_ends.load(Ordering::Relaxed);
        let counts = same_period && same_span;
        if counts {
            self.good.fetch_add(1, Ordering::Relaxed);
        }
        counts
    }

    pub(super) fn circuit(&self) -> Circuit {
        self.core.lock().circuit()
    }

    pub(super) fn configure(&self, policy: Policy, now: Instant) -> Option<Change> {
        self.locked(|core| core.configure(policy, now))
    }

    pub(super) fn probed(&self, good: bool, healthy_after: u32, now: Instant) -> Option<Change> {
        self.locked(|core| core.probed(good, healthy_after, now))
    }

    pub(super) fn recovered(&self, now: Instant) {
        self.locked(|core| core.recovered(now));
    }

    pub(super) fn force(&self, force: Force, now: Instant) -> Option<Change> {
        self.locked(|core| core.force(force, now))
    }

    fn locked<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = self.core.lock();
        core.add_good(self.good.swap(0, Ordering::Relaxed));
        let result = work(&mut core);
        self.span_ends.store(nanos(self.epoch, core.span_ends()), Ordering::Relaxed);
        self.passing.store(packed(&core), Ordering::Release);
        result
    }
}

/// 64 bits last for 584 years, and are quicker than the 128 of [`Duration::as_nanos`].
fn nanos(epoch: Instant, at: Instant) -> u64 {
    let since = at.saturating_duration_since(epoch);
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}

fn packed(core: &Core) -> u64 {
    core.period() << 1 | u64::from(core.passes_all())
}

/// An admitted call. Dropped without a result, it releases its trial.
#[must_use]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    ticket: Ticket,
}

impl Pass<'_> {
    /// Counts the result of the call, and returns the change of state that it caused.
    #[must_use]
    pub fn finish(self, sample: Sample, now: Instant) -> Option<Change> {
        let Self { breaker, ticket } = self;
        std::mem::forget(self);
        let good = !sample.failed && !sample.slow;
        if good && breaker.counts_good(ticket, now) {
            return None;
        }
        breaker.locked(|core| core.finish(ticket, sample, now, chance))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.ticket.trial {
            self.breaker.locked(|core| core.end_trial(self.ticket));
        }
    }
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ticket.fmt(f)
    }
}

#[cfg(test)]
mod tests;
