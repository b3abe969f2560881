//! Records the holders of pooled connections, so that the holder of a leak can be named.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::Span;

/// The checkouts of a pool.
#[derive(Debug, Default)]
pub(super) struct Holders {
    held: Mutex<BTreeMap<u64, Holder>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Holder {
    operation: &'static str,
    /// The span of the request, which carries its id.
    span: Span,
    since: Instant,
    /// The time at which it counts as leaked; `None` once the leak is reported.
    leaks_at: Option<Instant>,
}

/// A checkout that is held for too long.
#[derive(Debug)]
pub(super) struct Leak {
    pub(super) operation: &'static str,
    /// The span in which it was taken.
    pub(super) span: Span,
    pub(super) held: Duration,
}

/// The record of one checkout; dropping it ends the record.
#[derive(Debug)]
pub(super) struct Ticket {
    holders: Arc<Holders>,
    number: u64,
}

impl Holders {
    /// Records a checkout that begins now.
    pub(super) fn enter(
        self: &Arc<Self>,
        operation: &'static str,
        now: Instant,
        leaks_at: Instant,
    ) -> Ticket {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let span = Span::current();
        let holder = Holder { operation, span, since: now, leaks_at: Some(leaks_at) };
        self.held.lock().insert(number, holder);
        Ticket { holders: Arc::clone(self), number }
    }

    /// Returns the checkouts that became leaks, each only once.
    pub(super) fn leaks(&self, now: Instant) -> Vec<Leak> {
        let mut held = self.held.lock();
        let overdue = held
            .values_mut()
            .filter(|holder| holder.leaks_at.is_some_and(|leaks_at| now >= leaks_at));
        overdue
            .map(|holder| {
                holder.leaks_at = None;
                Leak {
                    operation: holder.operation,
                    span: holder.span.clone(),
                    held: now.saturating_duration_since(holder.since),
                }
            })
            .collect()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Dropped after the lock is released, because closing a span runs code of the logger.
        let holder = self.holders.held.lock().remove(&self.number);
        drop(holder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leak_is_given_once_and_never_after_its_return() {
        let holders = Arc::new(Holders::default());
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let _leaking = holders.enter("accept", begin, begin + second);
        let returned = holders.enter("list", begin, begin + second);
        let _later = holders.enter("run", begin, begin + second * 9);
        drop(returned);
        assert!(holders.leaks(begin).is_empty());
        let leaks = holders.leaks(begin + second * 2);
        let found: Vec<_> = leaks.iter().map(|leak| (leak.operation, leak.held)).collect();
        assert_eq!(found, [("accept", second * 2)]);
        assert!(holders.leaks(begin + second * 3).is_empty());
    }

    #[test]
    fn nothing_is_left_of_a_returned_checkout() {
        let holders = Arc::new(Holders::default());
        let now = Instant::now();
        drop(holders.enter("accept", now, now));
        assert!(holders.held.lock().is_empty());
    }
}
