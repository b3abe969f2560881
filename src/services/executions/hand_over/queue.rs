//! The way of executions from the requests that accept them to their hand-over.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify, mpsc},
    time::Instant,
};

use super::PARALLEL;
use crate::{
    backends::database::{Claim, ClaimedExecution},
    model::executions::Execution,
};

/// The way from the requests to the task that hands over.
#[derive(Debug)]
pub(super) struct Queue {
    /// Executions that were claimed when they were accepted.
    claimed: mpsc::Sender<Held>,
    /// Its other end, for the one task that hands over.
    pub(super) accepted: Mutex<mpsc::Receiver<Held>>,
    /// There is something to claim.
    pub(super) unclaimed: Notify,
    /// The last hand-over failed: what is accepted now is not claimed.
    failing: AtomicBool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let (claimed, accepted) = mpsc::channel(PARALLEL);
        Self {
            claimed,
            accepted: Mutex::new(accepted),
            unclaimed: Notify::new(),
            failing: AtomicBool::new(false),
        }
    }

    /// A place for an execution that is to be handed over at once.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        if self.is_failing() {
            return None;
        }
        self.claimed.try_reserve().ok().map(Place)
    }

    /// Whether the backend was out when it was last tried.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Tells that an execution waits which nobody has claimed.
    pub(super) fn wake(&self) {
        self.unclaimed.notify_one();
    }
}

/// A place for one execution.
pub(in super::super) struct Place<'a>(mpsc::Permit<'a, Held>);

impl Place<'_> {
    /// With an execution that was claimed for `lease` as it was accepted.
    pub(super) fn fill(self, execution: Execution, lease: Duration) {
        let fence = Claim::FIRST_FENCE;
        self.0.send(Held::new(ClaimedExecution { execution, fence, first_tried: None }, lease));
    }
}

/// An execution that waits for room, for as long as there is time left to hand it over before its
/// claim ends.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) claimed: ClaimedExecution,
    pub(super) until: Instant,
}

impl Held {
    pub(super) fn new(claimed: ClaimedExecution, lease: Duration) -> Self {
        Self { claimed, until: Instant::now() + lease / 2 }
    }
}
