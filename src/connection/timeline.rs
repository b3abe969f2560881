//! The last state changes of a connection and of its breaker.

use std::{
    borrow::Cow,
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use strum::IntoStaticStr;

use crate::{error::ErrorKind, model::time::Timestamp};

/// State changes that are remembered.
const REMEMBERED: usize = 100;

/// The changed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Subject {
    /// The connection, as its probes find it.
    Connection,
    /// Its circuit breaker.
    CircuitBreaker,
}

impl Subject {
    /// Stable name, as it appears in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A change of state.
#[derive(Clone, Debug)]
pub struct Transition {
    /// When.
    pub at: Timestamp,
    /// The changed part.
    pub subject: Subject,
    /// The state that ended.
    pub from: &'static str,
    /// The state that began.
    pub to: &'static str,
    /// Why.
    pub cause: Cow<'static, str>,
    /// The class of the error behind it.
    pub error: Option<ErrorKind>,
    /// How long the state that ended had lasted.
    pub lasted: Duration,
}

/// The last state changes, and how many there were.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    count: AtomicU64,
    last: Mutex<VecDeque<Transition>>,
}

impl Timeline {
    pub(super) fn push(&self, transition: Transition) {
        let mut last = self.last.lock();
        if last.len() == REMEMBERED {
            last.pop_front();
        }
        last.push_back(transition);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of changes.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last ones, oldest first.
    pub(super) fn last(&self) -> Vec<Transition> {
        self.last.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time;

    #[test]
    fn the_timeline_is_bounded_and_counts_all() {
        let timeline = Timeline::default();
        for number in 0..150_u64 {
            timeline.push(Transition {
                at: time::now(),
                subject: Subject::Connection,
                from: "unavailable",
                to: "initialized",
                cause: "recovered".into(),
                error: None,
                lasted: Duration::from_secs(number),
            });
        }
        let last = timeline.last();
        assert_eq!((timeline.count(), last.len()), (150, 100));
        assert_eq!(last[0].lasted.as_secs(), 50, "the oldest are forgotten");
    }
}
