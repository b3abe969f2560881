//! Decides which executions start in parallel, and when.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::Fuse};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{AHEAD, Answer, HandOver, MOST_STORING, RETRY, THROTTLED, pace::Pace, queue::Held};
use crate::backends::database::{ClaimedExecutions, Release, UnreadableExecution};

/// The starts in progress in this process.
///
/// Each call is a task of its own: it may hold a pooled connection or the writer's turn, so it must
/// continue whatever the loop that began it waits for.
pub(super) struct HandOvers {
    hand_over: Arc<HandOver>,
    stop: CancellationToken,
    ready: VecDeque<Held>,
    pace: Pace,
    starting: JoinSet<Tried>,
    /// Answers of the backend, and given-back claims, that are being stored.
    storing: JoinSet<()>,
    failures: u32,
    /// How often it asked for fewer calls since it last started an execution.
    throttles: u32,
    next_look: Instant,
    next_start: Instant,
}

/// An execution that the backend was asked to start.
struct Tried {
    held: Held,
    begun: Instant,
    took: Duration,
    answer: Answer,
}

impl HandOvers {
    pub(super) fn new(hand_over: &Arc<HandOver>, stop: &CancellationToken) -> Self {
        Self {
            hand_over: Arc::clone(hand_over),
            stop: stop.clone(),
            ready: VecDeque::new(),
            pace: Pace::new(hand_over.most_starts),
            starting: JoinSet::new(),
            storing: JoinSet::new(),
            failures: 0,
            throttles: 0,
            next_look: Instant::now(),
            next_start: Instant::now(),
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
            // connection. What is rare comes first, so that what is frequent cannot starve it.
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                claimed = &mut claiming => {
                    self.claimed(claimed, asked_for);
                    asked_for = 0;
                }
                () = sleep_until(self.next_look), if asked_for == 0 && self.wants_more() => {
                    // While the backend is down, one execution tests it as well as many.
                    asked_for = if self.failures == 0 { room } else { 1 };
                    claiming.set(hand_over.claim(asked_for).fuse());
                }
                () = sleep_until(self.next_start), if self.is_paused() => {}
                Some(held) = accepted.recv(), if room > 0 => self.ready.push_back(held),
                () = hand_over.queue.unclaimed.notified(), if self.failures == 0 => {
                    self.next_look = Instant::now();
                }
                Some(tried) = self.starting.join_next() => self.answered(tried.ok()),
                Some(_stored) = self.storing.join_next() => {}
            }
            self.catch_up();
        }
        // No other process can take over these claims until their lease ends.
        if asked_for > 0 {
            self.hold(claiming.await);
        }
        while let Ok(held) = accepted.try_recv() {
            self.ready.push_back(held);
        }
        while let Some(tried) = self.starting.join_next().await {
            self.answered(tried.ok());
        }
        self.release_held(Vec::new());
        while self.storing.join_next().await.is_some() {}
    }

    /// Takes all answers that are there, so that their successors begin together.
    fn catch_up(&mut self) {
        while let Some(tried) = self.starting.try_join_next() {
            self.answered(tried.ok());
        }
        while self.storing.try_join_next().is_some() {}
    }

    /// Starts as many as the backend takes; one at a time, after a pause, while it is down.
    fn begin(&mut self) {
        let most = if self.failures == 0 { self.pace.limit() } else { 1 };
        while self.starting.len() < most && self.storing.len() < MOST_STORING && !self.is_paused() {
            let Some(held) = self.ready.pop_front() else { return };
            let begun = Instant::now();
            // Another process may have claimed it meanwhile.
            if begun < held.until {
                let hand_over = Arc::clone(&self.hand_over);
                self.starting.spawn(async move {
                    let answer = hand_over.ask_to_start(&held.claimed).await;
                    Tried { held, begun, took: begun.elapsed(), answer }
                });
            }
        }
    }

    fn is_paused(&self) -> bool {
        Instant::now() < self.next_start
    }

    /// True when more executions must be claimed: only when at most half of those claimed ahead are
    /// left, so that few claims bring many.
    fn wants_more(&self) -> bool {
        if self.failures > 0 {
            return self.ready.is_empty() && self.starting.is_empty() && !self.is_paused();
        }
        self.ready.len() <= AHEAD / 2
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

    /// Readable executions wait for room; unreadable ones are set aside in parallel.
    fn hold(&mut self, claimed: ClaimedExecutions) {
        let lease = self.hand_over.lease;
        self.ready.extend(claimed.readable.into_iter().map(|claimed| Held::new(claimed, lease)));
        for unreadable in claimed.unreadable {
            let hand_over = Arc::clone(&self.hand_over);
            self.storing.spawn(async move {
                let UnreadableExecution { execution, fence, reason } = unreadable;
                if let Err(error) = hand_over.reject(&execution, fence, &reason).await {
                    let id = &execution.id;
                    tracing::debug!(%error, execution.id = id, "it is set aside at the next claim");
                }
            });
        }
    }

    /// Handles the answer of the backend; `None` after a panic, which counts as a failure.
    fn answered(&mut self, tried: Option<Tried>) {
        let Some(Tried { held, begun, took, answer }) = tried else { return self.failed() };
        match answer {
            Answer::Throttled => {
                self.pace.throttled(begun);
                self.ready.push_front(held);
                self.throttled();
            }
            Answer::Failed { untried } => {
                // Other processes may reach the backend.
                let held = held.release(untried);
                self.release_held(vec![held]);
                self.failed();
            }
            Answer::Verdict(verdict) => {
                self.pace.started(took, self.starting.len() + 1);
                self.reached();
                let (hand_over, stop) = (Arc::clone(&self.hand_over), self.stop.clone());
                self.storing
                    .spawn(async move { hand_over.keep(&held.claimed, verdict, &stop).await });
            }
        }
    }

    fn reached(&mut self) {
        self.throttles = 0;
        if self.failures > 0 {
            self.set_failures(0);
            self.next_look = Instant::now();
            self.next_start = Instant::now();
        }
    }

    /// Pauses the starts, as the backend asks for fewer calls: the longer it asks, the longer.
    fn throttled(&mut self) {
        if !self.is_paused() {
            self.throttles += 1;
            self.next_start = Instant::now() + THROTTLED.pause_after(self.throttles);
        }
    }

    /// Pauses the starts, as the backend is down. Failures in parallel count once.
    fn failed(&mut self) {
        if !self.is_paused() {
            self.set_failures(self.failures + 1);
            self.next_start = Instant::now() + RETRY.pause_after(self.failures);
            self.next_look = self.next_look.max(self.next_start);
        }
    }

    fn set_failures(&mut self, failures: u32) {
        self.failures = failures;
        self.hand_over.queue.set_failing(failures > 0);
    }

    /// Gives all claims back that are held, beside others.
    fn release_held(&mut self, mut released: Vec<Release>) {
        released.extend(self.ready.drain(..).map(|held| held.release(true)));
        if !released.is_empty() {
            let hand_over = Arc::clone(&self.hand_over);
            self.storing.spawn(async move { hand_over.release(released).await });
        }
    }
}
