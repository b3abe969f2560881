//! A built backend in use.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Backend, census::Alive};

/// Time limit for the last callers of a replaced or closed backend.
const DRAIN: Duration = Duration::from_secs(10);

/// A built backend and the number of calls it is serving.
pub(super) struct Live<B: ?Sized + Backend> {
    pub(super) backend: Arc<B>,
    /// The duration of the probe that proved it.
    pub(super) probe_took: Duration,
    pub(super) in_use: AtomicUsize,
    pub(super) idle: Notify,
    /// True when the last caller must signal that it is done.
    pub(super) awaited: AtomicBool,
    /// Cancelled when it is to be replaced or closed, so that streams over it end.
    pub(super) retiring: CancellationToken,
    pub(super) closing: CancellationToken,
    /// Counts it as living.
    pub(super) _alive: Alive,
}

impl<B: ?Sized + Backend> Drop for Live<B> {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl<B: ?Sized + Backend> Live<B> {
    /// Waits for the last caller, then closes the backend.
    pub(super) async fn retire(&self) {
        self.retiring.cancel();
        self.awaited.store(true, Ordering::SeqCst);
        let drained = async {
            loop {
                let idle = self.idle.notified();
                if self.in_use.load(Ordering::SeqCst) == 0 {
                    return;
                }
                idle.await;
            }
        };
        let in_time = timeout(DRAIN, drained).await.is_ok();
        if !in_time {
            tracing::warn!(
                in_use = self.in_use.load(Ordering::Relaxed),
                "a backend is closed although calls still use it"
            );
        }
        self.closing.cancel();
        self.backend.close().await;
    }
}

/// A backend in use. Dropping it releases it.
pub struct Lease<B: ?Sized + Backend>(Arc<Live<B>>);

impl<B: ?Sized + Backend> Lease<B> {
    /// `None` when the backend is being closed and may no longer accept callers.
    pub(super) fn new(live: Arc<Live<B>>) -> Option<Self> {
        live.in_use.fetch_add(1, Ordering::SeqCst);
        let lease = Self(live);
        let came_in_time = !lease.0.awaited.load(Ordering::SeqCst);
        came_in_time.then_some(lease)
    }

    /// Completes when the backend is to be replaced or closed, so that a stream over it ends.
    pub async fn retired(&self) {
        self.0.retiring.cancelled().await;
    }
}

impl<B: ?Sized + Backend> Deref for Lease<B> {
    type Target = Arc<B>;

    fn deref(&self) -> &Arc<B> {
        &self.0.backend
    }
}

impl<B: ?Sized + Backend> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.backend.fmt(f)
    }
}

impl<B: ?Sized + Backend> Drop for Lease<B> {
    fn drop(&mut self) {
        // Sequentially consistent, as in `retire`: one of the two sees what the other has done.
        let was_last = self.0.in_use.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.0.awaited.load(Ordering::SeqCst) {
            self.0.idle.notify_waiters();
        }
    }
}
