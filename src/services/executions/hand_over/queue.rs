//! The way of executions from the requests that accept them to their start.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify, mpsc},
    time::Instant,
};

use super::MOST_STARTS;
use crate::{
    backends::database::{Claim, ClaimedExecution, Release},
    model::executions::Execution,
};

/// The queue between the requests and the task that starts executions.
#[derive(Debug)]
pub(super) struct Queue {
    /// Executions that were claimed on acceptance.
    claimed: mpsc::Sender<Held>,
    /// The receiving end of `claimed`, for the one task that starts executions.
    pub(super) accepted: Mutex<mpsc::Receiver<Held>>,
    /// Notified when there is something to claim.
    pub(super) unclaimed: Notify,
    /// True when the last start failed: executions accepted now are not claimed.
    failing: AtomicBool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let (claimed, accepted) = mpsc::channel(MOST_STARTS);
        Self {
            claimed,
            accepted: Mutex::new(accepted),
            unclaimed: Notify::new(),
            failing: AtomicBool::new(false),
        }
    }

    /// A place for an execution that is to start at once.
    pub(super) fn place(&self) -> Option<Place<'_>> {
        if self.is_failing() {
            return None;
        }
        self.claimed.try_reserve().ok().map(Place)
    }

    /// True when the backend was down at the last attempt.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Notifies that an unclaimed execution waits.
    pub(super) fn wake(&self) {
        self.unclaimed.notify_one();
    }
}

/// A place for one execution.
pub(in super::super) struct Place<'a>(mpsc::Permit<'a, Held>);

impl Place<'_> {
    /// Fills the place with an execution that was claimed for `lease` on acceptance.
    pub(super) fn fill(self, execution: Execution, lease: Duration) {
        let fence = Claim::FIRST_FENCE;
        self.0.send(Held::new(ClaimedExecution { execution, fence, first_tried: None }, lease));
    }
}

/// An execution that waits for room, as long as there is time left to start it before its claim
/// ends.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) claimed: ClaimedExecution,
    pub(super) until: Instant,
}

impl Held {
    pub(super) fn new(claimed: ClaimedExecution, lease: Duration) -> Self {
        Self { claimed, until: Instant::now() + lease / 2 }
    }

    /// Gives the claim back. `untried`: the backend has certainly not received a start by it.
    pub(super) fn release(self, untried: bool) -> Release {
        let ClaimedExecution { execution, fence, first_tried } = self.claimed;
        Release { id: execution.id, fence, untried: untried && first_tried.is_none() }
    }
}
