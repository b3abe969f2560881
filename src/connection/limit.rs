//! The concurrency limit: how many calls a connection serves at once, and how many may wait.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{
    config::Concurrency as Policy,
    error::{Error, ErrorKind},
    telemetry::metrics::Rejection,
};

/// When a place is likely to be free again. Calls are short, so soon.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bounds the calls in flight and the calls that wait.
#[derive(Debug)]
pub(super) struct Limit {
    places: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
}

impl Limit {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            places: Semaphore::new(policy.max_in_flight),
            waiting: AtomicUsize::new(0),
            max_waiting: policy.max_waiting,
        }
    }

    /// Takes a place if one is free.
    pub(super) fn try_acquire(&self) -> Option<SemaphorePermit<'_>> {
        self.places.try_acquire().ok()
    }

    /// Waits for a place until `deadline`.
    ///
    /// # Cancel safety
    /// A caller that goes away leaves the queue.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Rejection> {
        let _waiting = Waiting::join(self).ok_or(Rejection::QueueFull)?;
        let place = timeout_at(deadline, self.places.acquire()).await;
        // The semaphore is never closed, so an error can only be the deadline's.
        place.ok().and_then(Result::ok).ok_or(Rejection::QueueTimeout)
    }
}

/// The error of a rejected call: our own limit, not the backend's fault.
pub(super) fn rejected(reason: Rejection) -> Error {
    let message = match reason {
        Rejection::QueueFull => "as many calls as concurrency.max_waiting allows wait already",
        _ => "no place among concurrency.max_in_flight calls became free in time",
    };
    Error::new(ErrorKind::Overloaded, message).with_retry_after(RETRY_AFTER)
}

/// A place in the queue.
struct Waiting<'a>(&'a Limit);

impl<'a> Waiting<'a> {
    fn join(limit: &'a Limit) -> Option<Self> {
        let joins = |waiting: usize| (waiting < limit.max_waiting).then_some(waiting + 1);
        limit.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, joins).ok()?;
        Some(Self(limit))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max_in_flight: usize, max_waiting: usize) -> Limit {
        Limit::new(&Policy { max_in_flight, max_waiting })
    }

    async fn acquire(limit: &Limit, deadline: Instant) -> Result<SemaphorePermit<'_>, Rejection> {
        match limit.try_acquire() {
            Some(place) => Ok(place),
            None => limit.wait(deadline).await,
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(2)
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_calls_wait_in_turn_until_their_deadline() {
        let limit = limit(1, 10);
        let place = acquire(&limit, soon()).await.unwrap();
        let begin = Instant::now();
        assert_eq!(acquire(&limit, soon()).await.unwrap_err(), Rejection::QueueTimeout);
        assert_eq!(begin.elapsed().as_secs(), 2);
        let waiting = acquire(&limit, soon());
        let freeing = async {
            tokio::task::yield_now().await;
            drop(place);
        };
        let (taken, ()) = tokio::join!(waiting, freeing);
        assert!(taken.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once() {
        let limit = limit(1, 0);
        let _place = acquire(&limit, soon()).await.unwrap();
        let begin = Instant::now();
        assert_eq!(acquire(&limit, soon()).await.unwrap_err(), Rejection::QueueFull);
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_go_away_leave_no_trace() {
        let limit = limit(1, 5);
        let place = acquire(&limit, soon()).await.unwrap();
        for _ in 0..100 {
            let gone =
                tokio::time::timeout(Duration::from_millis(1), acquire(&limit, soon())).await;
            assert!(gone.is_err());
        }
        assert_eq!(limit.waiting.load(Ordering::Relaxed), 0);
        drop(place);
        assert!(acquire(&limit, soon()).await.is_ok());
    }
}
