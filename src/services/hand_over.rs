//! Hands accepted executions over to the execution service.
//!
//! An execution is claimed by one process at a time, usually by the one that accepts it, in the
//! same transaction. Its request id makes repetitions harmless, so a claim that ended too early
//! starts nothing twice. What fails goes back to be claimed again, by whoever is quicker.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::Fuse};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    depth::Depth,
    records::{Shared, announcement},
};
use crate::{
    backends::{
        database::{Claim, ClaimedExecution, ClaimedExecutions, UnreadableExecution},
        execution_service::ExecutionService,
    },
    config,
    connection::Operation,
    error::{Error, ErrorKind},
    model::{
        executions::{Execution, OpenExecution, Outcome, StartRequest, Status},
        time,
    },
    telemetry::metrics::Destination,
};

const CLAIM: Operation = Operation::once("claim_executions");
const RELEASE: Operation = Operation::idempotent("release_execution");
const REFUSED: Operation = Operation::once("count_refusal");
const REJECT: Operation = Operation::once("reject_execution");
const WAITING: Operation = Operation::idempotent("waiting_executions");
// The stored request id makes repetitions harmless.
const START: Operation = Operation::idempotent("start");
pub(super) const DATABASE_OPERATIONS: [Operation; 5] = [CLAIM, RELEASE, REFUSED, REJECT, WAITING];
pub(super) const SERVICE_OPERATIONS: [Operation; 1] = [START];

/// Executions handed over side by side.
const PARALLEL: usize = 32;
/// Executions that are claimed before there is room for them, so that none of the room waits for a
/// claim.
const AHEAD: usize = 32;
/// First pause after a hand-over that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause. Short, because an open breaker makes a try cheap.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pause after the backend refused an execution for what it is.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);
/// How often the queue is counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// The way from the requests to the task that hands over.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) depth: Depth,
    /// Executions that were claimed when they were accepted.
    claimed: mpsc::Sender<Held>,
    taken: Mutex<Option<mpsc::Receiver<Held>>>,
    /// There is something to claim.
    unclaimed: Notify,
    /// The last hand-over failed: what is accepted now is not claimed.
    failing: AtomicBool,
}

impl Queue {
    pub(super) fn new(config: &config::Outbox) -> Self {
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

    /// Tells that an execution waits which nobody has claimed.
    pub(super) fn wake(&self) {
        self.unclaimed.notify_one();
    }
}

pub(super) struct Place<'a>(mpsc::Permit<'a, Held>);

impl Place<'_> {
    /// With an execution that was claimed for `lease` as it was accepted.
    pub(super) fn fill(self, execution: Execution, lease: Duration) {
        let fence = Claim::FIRST_FENCE;
        self.0.send(Held::new(ClaimedExecution { execution, fence, first_tried: None }, lease));
    }
}

/// What came of a hand-over that reached the backend.
enum Answer {
    Started,
    /// It was first tried so long ago that the backend may have forgotten it by now.
    TooLate,
}

/// How a task of the hand-over has ended.
enum Ended {
    /// The backend was reached.
    HandedOver,
    /// The backend was out.
    Failed,
    /// It was given back untried.
    Released,
}

/// An execution that waits for room, for as long as there is time left to hand it over before its
/// claim ends.
#[derive(Debug)]
struct Held {
    claimed: ClaimedExecution,
    until: Instant,
}

impl Held {
    fn new(claimed: ClaimedExecution, lease: Duration) -> Self {
        Self { claimed, until: Instant::now() + lease / 2 }
    }
}

/// The hand-overs of this process.
///
/// Each is a task of its own: it may hold a pooled connection or the writer's turn, so it has to go
/// on whatever the loop that began it waits for.
struct HandOver {
    shared: Arc<Shared>,
    stop: CancellationToken,
    ready: VecDeque<Held>,
    under_way: JoinSet<Ended>,
    failures: u32,
    next_look: Instant,
}

impl HandOver {
    /// Hands over until `stop`, then ends what it has begun.
    async fn run(mut self, mut accepted: mpsc::Receiver<Held>) {
        let shared = Arc::clone(&self.shared);
        let mut claiming = std::pin::pin!(Fuse::terminated());
        let mut asked_for = 0;
        while !self.stop.is_cancelled() {
            self.begin();
            let room = AHEAD.saturating_sub(self.ready.len() + asked_for);
            // Nothing is awaited inside of an arm: the claim under way holds a pooled connection.
            tokio::select! {
                () = self.stop.cancelled() => {}
                Some(ended) = self.under_way.join_next() => self.note(ended.ok().as_ref()),
                Some(held) = accepted.recv(), if room > 0 => self.ready.push_back(held),
                claimed = &mut claiming => {
                    self.claimed(claimed, asked_for);
                    asked_for = 0;
                }
                () = shared.queue.unclaimed.notified(), if self.failures == 0 => {
                    self.next_look = Instant::now();
                }
                () = sleep_until(self.next_look), if self.is_paused() => {}
                () = sleep_until(self.next_look), if asked_for == 0 && self.wants_more() => {
                    // While the backend is out one execution is as good a question as many.
                    asked_for = if self.failures == 0 { room } else { 1 };
                    claiming.set(shared.claim(asked_for).fuse());
                }
            }
        }
        // What it has claimed nobody else has until the lease ends.
        if asked_for > 0 {
            self.hold(claiming.await);
        }
        while let Ok(held) = accepted.try_recv() {
            self.ready.push_back(held);
        }
        self.release_held();
        while self.under_way.join_next().await.is_some() {}
    }

    /// Begins as many as there is room for; one at a time, after a pause, while the backend is out.
    fn begin(&mut self) {
        let most = if self.failures == 0 { PARALLEL } else { 1 };
        while self.under_way.len() < most && !self.is_paused() {
            let Some(Held { claimed, until }) = self.ready.pop_front() else { return };
            // Another process may have claimed it since then.
            if Instant::now() < until {
                let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
                self.under_way.spawn(async move { shared.hand_over(claimed, &stop).await });
            }
        }
    }

    fn is_paused(&self) -> bool {
        self.failures > 0 && Instant::now() < self.next_look
    }

    /// Whether there are to be more claims; half of those ahead are left at least, so that few
    /// claims bring many.
    fn wants_more(&self) -> bool {
        if self.failures > 0 {
            return self.ready.is_empty() && self.under_way.is_empty();
        }
        self.ready.len() <= AHEAD / 2
    }

    /// What can be read waits for room; what cannot is set aside beside it.
    fn hold(&mut self, claimed: ClaimedExecutions) {
        let lease = self.shared.config.lease;
        self.ready.extend(claimed.readable.into_iter().map(|claimed| Held::new(claimed, lease)));
        for unreadable in claimed.unreadable {
            let shared = Arc::clone(&self.shared);
            self.under_way.spawn(async move {
                let UnreadableExecution { execution, fence, reason } = unreadable;
                if let Err(error) = shared.reject(&execution, fence, &reason).await {
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
        // While the backend is out, what was claimed is tried at once: the pause came before.
        let at_once = count == asked_for;
        let pause = if at_once { Duration::ZERO } else { self.shared.config.sweep_interval };
        self.next_look = Instant::now() + pause;
        self.hold(claimed);
    }

    /// A task that panicked counts as one that failed.
    fn note(&mut self, ended: Option<&Ended>) {
        match ended {
            Some(Ended::HandedOver) if self.failures == 0 => {}
            Some(Ended::HandedOver) => {
                self.set_failures(0);
                self.next_look = Instant::now();
            }
            Some(Ended::Released) => {}
            // Those that failed side by side count once.
            Some(Ended::Failed) | None if self.is_paused() => {}
            Some(Ended::Failed) | None => {
                self.set_failures(self.failures + 1);
                self.next_look = Instant::now() + pause_after(self.failures);
                // Others may reach the backend.
                self.release_held();
            }
        }
    }

    fn set_failures(&mut self, failures: u32) {
        self.failures = failures;
        self.shared.queue.failing.store(failures > 0, Ordering::Relaxed);
    }

    fn release_held(&mut self) {
        for Held { claimed, .. } in self.ready.drain(..) {
            let shared = Arc::clone(&self.shared);
            self.under_way.spawn(async move {
                shared.release(&claimed, claimed.first_tried.is_none()).await;
                Ended::Released
            });
        }
    }
}

impl Shared {
    /// Hands over until `stop`, then ends what it has begun.
    pub(super) async fn hand_over_accepted(self: &Arc<Self>, stop: &CancellationToken) {
        let Some(accepted) = self.queue.taken.lock().take() else { return };
        let hand_over = HandOver {
            shared: Arc::clone(self),
            stop: stop.clone(),
            ready: VecDeque::new(),
            under_way: JoinSet::new(),
            failures: 0,
            next_look: Instant::now(),
        };
        hand_over.run(accepted).await;
    }

    async fn claim(&self, most: usize) -> ClaimedExecutions {
        let (backend, owner, lease) = (&self.backend, &*self.owner, self.config.lease);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let claimed = self
            .database
            .call(CLAIM, |database| async move {
                database.claim_executions(backend, owner, lease, most).await
            })
            .await;
        // Outages are logged by the probes of the connection that is out.
        claimed.unwrap_or_else(|error| {
            tracing::debug!(%error, "accepted executions cannot be claimed");
            ClaimedExecutions::default()
        })
    }

    async fn hand_over(&self, claimed: ClaimedExecution, stop: &CancellationToken) -> Ended {
        match self.try_hand_over(&claimed, stop).await {
            Ok(()) => Ended::HandedOver,
            // The claim ends by itself, and another try finds what this one has come to.
            Err(error) => {
                let id = &claimed.execution.id;
                tracing::debug!(%error, execution.id = id, "a hand-over will be repeated");
                if error.kind().is_outage() { Ended::Failed } else { Ended::HandedOver }
            }
        }
    }

    async fn try_hand_over(
        &self,
        claimed: &ClaimedExecution,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let execution = &OpenExecution::from(&claimed.execution);
        let request = &start_request(&claimed.execution);
        let first_tried = claimed.first_tried;
        let answer = self
            .service
            .call(START, |service| async move { start(&**service, request, first_tried).await })
            .await;
        let outcome = match answer {
            Ok(Answer::Started) => Outcome::running(time::now()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Outcome::ended(Status::Failed, "id_taken", time::now())
            }
            Ok(Answer::TooLate) => {
                let message = "it was first tried so long ago that it may have run since";
                return self.reject(execution, claimed.fence, message).await;
            }
            Err(error) if error.kind().refuses_call() => {
                return self.refused(claimed, &error).await;
            }
            Err(error) => {
                let untried = error.kind().is_outage() && !error.outcome_unknown();
                self.release(claimed, first_tried.is_none() && untried).await;
                return Err(error);
            }
        };
        self.store(execution, &outcome, stop).await?;
        self.metrics.outbox_delivered(Destination::ExecutionService, 1);
        Ok(())
    }

    /// Stores what the backend has answered. It was asked and is not to be asked again, so that
    /// this goes on through an outage of the database, until `stop`.
    async fn store(
        &self,
        execution: &OpenExecution,
        outcome: &Outcome,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        for failures in 1.. {
            let error = match self.apply(execution, outcome).await {
                Ok(_changed) => return Ok(()),
                Err(error) => error,
            };
            if !error.kind().is_outage() || stop.is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, execution.id, "a hand-over cannot be stored yet");
            tokio::select! {
                () = sleep(pause_after(failures)) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    async fn release(&self, claimed: &ClaimedExecution, untried: bool) {
        let (id, fence) = (&claimed.execution.id, claimed.fence);
        let released = self
            .database
            .call(RELEASE, |database| async move {
                database.release_execution(id, fence, untried).await
            })
            .await;
        if let Err(error) = released {
            tracing::debug!(%error, execution.id = id, "a claim cannot be given back, it expires");
        }
    }

    /// The backend refused this very execution.
    async fn refused(&self, claimed: &ClaimedExecution, error: &Error) -> Result<(), Error> {
        let (id, fence) = (&claimed.execution.id, claimed.fence);
        let refusals = self
            .database
            .call(REFUSED, |database| async move {
                database.count_refusal(id, fence, REFUSAL_PAUSE).await
            })
            .await?;
        if refusals.is_some_and(|refusals| refusals >= self.max_refusals) {
            let execution = OpenExecution::from(&claimed.execution);
            return self.reject(&execution, fence, &error.to_string()).await;
        }
        Ok(())
    }

    async fn reject(
        &self,
        execution: &OpenExecution,
        fence: i64,
        reason: &str,
    ) -> Result<(), Error> {
        let id = &execution.id;
        let message = format!("start_rejected: {reason}");
        let outcome = &Outcome::ended(Status::Failed, message, time::now());
        let announcement = &announcement(execution, outcome);
        let done = self
            .database
            .call(REJECT, |database| async move {
                database.reject_execution(id, fence, outcome, announcement).await
            })
            .await?;
        if done {
            tracing::error!(
                execution.id = id,
                reason,
                "an execution cannot be started, it is a dead letter"
            );
            self.changed(execution, Status::Failed, 1);
        }
        Ok(())
    }

    /// Counts what waits, for the bound and the metrics.
    pub(super) async fn keep_count(&self) {
        loop {
            let count = async |most| {
                self.database
                    .call(
                        WAITING,
                        |database| async move { database.waiting_executions(most).await },
                    )
                    .await
            };
            if let Some(backlog) = self.queue.depth.count(count).await {
                self.metrics.show_outbox(Destination::ExecutionService, &backlog);
            }
            sleep(COUNT_EVERY).await;
        }
    }
}

fn pause_after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        _ => FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_PAUSE),
    }
}

fn start_request(execution: &Execution) -> StartRequest {
    StartRequest {
        id: execution.id.clone(),
        request_id: execution.request_id.clone(),
        workflow: execution.workflow.clone(),
        definition: execution.definition.clone(),
        input: execution.input.clone(),
        timeout: execution.timeout,
        traceparent: execution.traceparent.clone(),
    }
}

/// The backend knows what it has started for as long as it remembers. Half of this time is left
/// for clocks and pauses.
async fn start(
    service: &dyn ExecutionService,
    request: &StartRequest,
    first_tried: Option<Duration>,
) -> Result<Answer, Error> {
    let remembered = service.remembers_for().map(|time| time / 2);
    if let (Some(remembered), Some(tried)) = (remembered, first_tried)
        && tried > remembered
    {
        return Ok(Answer::TooLate);
    }
    service.start(request).await.map(|()| Answer::Started)
}
