//! The concurrency limit: how many calls a connection serves at once, and how many may wait.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    config::Concurrency as Policy,
    error::{Error, ErrorKind},
    telemetry::metrics::Rejection,
};

/// The time after which a slot is likely to be free: short, as calls are.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bounds the calls in flight and the calls that wait.
///
/// A semaphore alone would do, but takes a lock for each place that is given back. Here only places
/// that somebody waits for go through it.
#[derive(Debug)]
pub(super) struct Limit {
    /// Places that nobody holds or waits for.
    free: AtomicUsize,
    /// Places for waiting calls, in order. A place left by its waiter is free for any call.
    handed_on: Semaphore,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// A place among the calls in flight. Dropping it passes it to the next call.
#[derive(Debug)]
pub(super) struct Place<'a>(&'a Limit);

impl Limit {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            free: AtomicUsize::new(policy.max_in_flight),
            handed_on: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            max_waiting: policy.max_waiting,
        }
    }

    /// Takes a place if one is free and nobody waits for it.
    pub(super) fn try_acquire(&self) -> Option<Place<'_>> {
        if self.waiting.load(SeqCst) == 0 && self.take_free() {
            return Some(Place(self));
        }
        // Fails while calls wait, because released places belong to them.
        self.handed_on.try_acquire().ok().map(|permit| {
            permit.forget();
            Place(self)
        })
    }

    /// Waits for a place until `deadline`.
    ///
    /// # Cancel safety
    /// A caller that goes away leaves the queue.
    pub(super) async fn wait(&self, deadline: Instant) -> Result<Place<'_>, Rejection> {
        let _waiting = Waiting::join(self).ok_or(Rejection::QueueFull)?;
        // Whoever gave a place back before it could see this one in the queue has left it here.
        if self.take_free() {
            return Ok(Place(self));
        }
        match timeout_at(deadline, self.handed_on.acquire()).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(Place(self))
            }
            // The semaphore is never closed, so an error can only be the deadline's.
            _ => Err(Rejection::QueueTimeout),
        }
    }

    fn take_free(&self) -> bool {
        self.free.fetch_update(SeqCst, SeqCst, |free| free.checked_sub(1)).is_ok()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let limit = self.0;
        // First free, then the look at the queue; who waits does both the other way round, so that
        // one of the two sees what the other has done.
        limit.free.fetch_add(1, SeqCst);
        if limit.waiting.load(SeqCst) > 0 && limit.take_free() {
            limit.handed_on.add_permits(1);
        }
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
        limit.waiting.fetch_update(SeqCst, SeqCst, joins).ok()?;
        Some(Self(limit))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::task::JoinSet;

    use super::*;

    fn limit(max_in_flight: usize, max_waiting: usize) -> Limit {
        Limit::new(&Policy { max_in_flight, max_waiting })
    }

    async fn acquire(limit: &Limit, deadline: Instant) -> Result<Place<'_>, Rejection> {
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
        assert_eq!(limit.waiting.load(SeqCst), 0);
        drop(place);
        assert!(acquire(&limit, soon()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_before_who_comes() {
        let limit = limit(1, 10);
        let place = acquire(&limit, soon()).await.unwrap();
        let mut first = Box::pin(limit.wait(soon()));
        assert!(futures_util::poll!(&mut first).is_pending());
        drop(place);
        assert!(limit.try_acquire().is_none(), "a newcomer took the place of one who waits");
        drop(first.await.unwrap());
        assert!(limit.try_acquire().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_its_waiter_left_behind_is_not_lost() {
        let limit = limit(1, 10);
        let place = acquire(&limit, soon()).await.unwrap();
        let mut gone = Box::pin(limit.wait(soon()));
        assert!(futures_util::poll!(&mut gone).is_pending());
        drop(place);
        drop(gone);
        let place = limit.try_acquire();
        assert!(place.is_some());
        drop(place);
        assert_eq!(limit.free.load(SeqCst), 1);
    }

    /// Tasks that come, wait, work and give up on several threads.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn under_load_no_place_is_lost_or_given_twice() {
        const PLACES: usize = 3;
        let limit = Arc::new(limit(PLACES, 1000));
        let working = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for task in 0..64_u64 {
            let (limit, working) = (Arc::clone(&limit), Arc::clone(&working));
            tasks.spawn(async move {
                for round in 0..500 {
                    let patience = Duration::from_micros((task + round) % 7 * 300);
                    let Ok(_place) = acquire(&limit, Instant::now() + patience).await else {
                        continue;
                    };
                    let others = working.fetch_add(1, SeqCst);
                    assert!(others < PLACES, "{others} others hold a place");
                    tokio::task::yield_now().await;
                    working.fetch_sub(1, SeqCst);
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        let places: Vec<_> = std::iter::from_fn(|| limit.try_acquire()).collect();
        assert_eq!(places.len(), PLACES);
        assert_eq!(limit.waiting.load(SeqCst), 0);
    }
}
