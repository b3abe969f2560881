//! Decides which executions start in parallel, and when.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::Fuse};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{AHEAD, HandOver, PARALLEL, RETRY, queue::Held};
use crate::backends::database::{ClaimedExecutions, UnreadableExecution};

/// The result of a task that starts executions.
pub(super) enum Ended {
    /// The backend was reached.
    HandedOver,
    /// The backend was down.
    Failed,
    /// The execution was released without an attempt.
    Released,
}

/// The starts in progress in this process.
///
/// Each start is a task of its own: it may hold a pooled connection or the writer's turn, so it
/// must continue whatever the loop that began it waits for.
pub(super) struct HandOvers {
    hand_over: Arc<HandOver>,
    stop: CancellationToken,
    ready: VecDeque<Held>,
    under_way: JoinSet<Ended>,
    failures: u32,
    next_look: Instant,
}

impl HandOvers {
    pub(super) fn new(hand_over: &Arc<HandOver>, stop: &CancellationToken) -> Self {
        Self {
            hand_over: Arc::clone(hand_over),
            stop: stop.clone(),
            ready: VecDeque::new(),
            under_way: JoinSet::new(),
            failures: 0,
            next_look: Instant::now(),
        }
    }

    /// Starts executions until `stop`, then finishes the starts in progress.
    pub(super) async fn run(mut self, accepted: &mut mpsc::Receiver<Held>) {
        let hand_over = Arc::clone(&self.hand_over);
        let mut claiming = pin!(Fuse::terminated());
        let mut asked_for = 0;
        while !self.stop.is_cancelled() {
            self.begin();
            let room = AHEAD.saturating_sub(self.ready.len() + asked_for);
            // Nothing is awaited inside an arm, because the claim in progress holds a pooled
            // connection.
            tokio::select! {
                () = self.stop.cancelled() => {}
                Some(ended) = self.under_way.join_next() => self.note(ended.ok().as_ref()),
                Some(held) = accepted.recv(), if room > 0 => self.ready.push_back(held),
                claimed = &mut claiming => {
                    self.claimed(claimed, asked_for);
                    asked_for = 0;
                }
                () = hand_over.queue.unclaimed.notified(), if self.failures == 0 => {
                    self.next_look = Instant::now();
                }
                () = sleep_until(self.next_look), if self.is_paused() => {}
                () = sleep_until(self.next_look), if asked_for == 0 && self.wants_more() => {
                    // While the backend is down, one execution tests it as well as many.
                    asked_for = if self.failures == 0 { room } else { 1 };
                    claiming.set(hand_over.claim(asked_for).fuse());
                }
            }
        }
        // No other process can take over these claims until their lease ends.
        if asked_for > 0 {
            self.hold(claiming.await);
        }
        while let Ok(held) = accepted.try_recv() {
            self.ready.push_back(held);
        }
        self.release_held();
        while self.under_way.join_next().await.is_some() {}
    }

    /// Starts as many as there is room for; one at a time, after a pause, while the backend is
    /// down.
    fn begin(&mut self) {
        let most = if self.failures == 0 { PARALLEL } else { 1 };
        while self.under_way.len() < most && !self.is_paused() {
            let Some(Held { claimed, until }) = self.ready.pop_front() else { return };
            // Another process may have claimed it meanwhile.
            if Instant::now() < until {
                let (hand_over, stop) = (Arc::clone(&self.hand_over), self.stop.clone());
                self.under_way.spawn(async move { hand_over.hand_over(claimed, &stop).await });
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.failures > 0 && Instant::now() < self.next_look
    }

    /// True when more executions must be claimed: only when at most half of those claimed ahead are
    /// left, so that few claims bring many.
    fn wants_more(&self) -> bool {
        if self.failures > 0 {
            return self.ready.is_empty() && self.under_way.is_empty();
        }
        self.ready.len() <= AHEAD / 2
    }

    /// Readable executions wait for room; unreadable ones are set aside in parallel.
    fn hold(&mut self, claimed: ClaimedExecutions) {
        let lease = self.hand_over.lease;
        self.ready.extend(claimed.readable.into_iter().map(|claimed| Held::new(claimed, lease)));
        for unreadable in claimed.unreadable {
            let hand_over = Arc::clone(&self.hand_over);
            self.under_way.spawn(async move {
                let UnreadableExecution { execution, fence, reason } = unreadable;
                if let Err(error) = hand_over.reject(&execution, fence, &reason).await {
                    let id = &execution.id;
                    tracing::debug!(%error, execution.id = id, "it is set aside at the next claim");
                }
                Ended::Released
            });
        }
    }

    fn claimed(&mut self, claimed: ClaimedExecutions, asked_for: usize) {
        let count = claimed.readable.len() + claimed.unreadable.len();
        if count == 0 {
            self.set_failures(0);
        }
        // While the backend is down, a claimed execution is tried at once: the pause came before.
        let at_once = count == asked_for;
        let pause = if at_once { Duration::ZERO } else { self.hand_over.sweep_interval };
        self.next_look = Instant::now() + pause;
        self.hold(claimed);
    }

    /// A task that panicked counts as failed.
    fn note(&mut self, ended: Option<&Ended>) {
        match ended {
            Some(Ended::HandedOver) if self.failures == 0 => {}
            Some(Ended::HandedOver) => {
                self.set_failures(0);
                self.next_look = Instant::now();
            }
            Some(Ended::Released) => {}
            // Failures in parallel count once.
            Some(Ended::Failed) | None if self.is_paused() => {}
            Some(Ended::Failed) | None => {
                self.set_failures(self.failures + 1);
                self.next_look = Instant::now() + RETRY.pause_after(self.failures);
                // Other processes may reach the backend.
                self.release_held();
            }
        }
    }

    fn set_failures(&mut self, failures: u32) {
        self.failures = failures;
        self.hand_over.queue.set_failing(failures > 0);
    }

    fn release_held(&mut self) {
        for Held { claimed, .. } in self.ready.drain(..) {
            let hand_over = Arc::clone(&self.hand_over);
            self.under_way.spawn(async move {
                hand_over.release(&claimed, claimed.first_tried.is_none()).await;
                Ended::Released
            });
        }
    }
}
