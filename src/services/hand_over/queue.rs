//! The way of executions from the requests that accept them to their hand-over.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{super::depth::Depth, PARALLEL};
use crate::{
    backends::database::{Claim, ClaimedExecution},
    config,
    model::executions::Execution,
};

/// The way from the requests to the task that hands over.
#[derive(Debug)]
pub(in crate::services) struct Queue {
    pub(in crate::services) depth: Depth,
    /// Executions that were claimed when they were accepted.
    claimed: mpsc::Sender<Held>,
    pub(super) taken: Mutex<Option<mpsc::Receiver<Held>>>,
    /// There is something to claim.
    pub(super) unclaimed: Notify,
    /// The last hand-over failed: what is accepted now is not claimed.
    failing: AtomicBool,
}

impl Queue {
    pub(in crate::services) fn new(config: &config::Outbox) -> Self {
        let (claimed, taken) = mpsc::channel(PARALLEL);
        Self {
            depth: Depth::new("execution service", config),
            claimed,
            taken: Mutex::new(Some(taken)),
            unclaimed: Notify::new(),
            failing: AtomicBool::new(false),
        }
    }

    /// A place for an execution that is to be handed over at once.
    pub(in crate::services) fn place(&self) -> Option<Place<'_>> {
        if self.is_failing() {
            return None;
        }
        self.claimed.try_reserve().ok().map(Place)
    }

    /// Whether the backend was out when it was last tried.
    pub(in crate::services) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Tells that an execution waits which nobody has claimed.
    pub(in crate::services) fn wake(&self) {
        self.unclaimed.notify_one();
    }
}

pub(in crate::services) struct Place<'a>(mpsc::Permit<'a, Held>);

impl Place<'_> {
    /// With an execution that was claimed for `lease` as it was accepted.
    pub(in crate::services) fn fill(self, execution: Execution, lease: Duration) {
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
