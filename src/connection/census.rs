//! The backends of a connection, counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Counts of past and present backends.
#[derive(Default)]
pub(super) struct Census {
    live: Arc<AtomicUsize>,
    swaps: Arc<AtomicUsize>,
    rebuilds: AtomicU64,
    discarded: AtomicU64,
}

/// Counts a backend as living until dropped.
pub(super) struct Alive(Arc<AtomicUsize>);

/// A backend takes the place of another: while this lives, more than one backend may.
pub(super) struct Swap(Arc<AtomicUsize>);

impl Census {
    /// A backend was built.
    pub(super) fn built(&self) -> Alive {
        self.live.fetch_add(1, Ordering::Relaxed);
        Alive(Arc::clone(&self.live))
    }

    /// One is about to take the place of another.
    pub(super) fn swap(&self) -> Swap {
        self.swaps.fetch_add(1, Ordering::Relaxed);
        Swap(Arc::clone(&self.swaps))
    }

    /// One has taken the place of another.
    pub(super) fn replaced(&self) {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
    }

    /// One was never used.
    pub(super) fn discarded(&self) {
        self.discarded.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    pub(super) fn is_swapping(&self) -> bool {
        self.swaps.load(Ordering::Relaxed) > 0
    }

    pub(super) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Relaxed)
    }

    pub(super) fn discards(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
