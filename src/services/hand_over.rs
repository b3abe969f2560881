//! Hands accepted executions over to the execution service.
//!
//! An execution is claimed by one process at a time, usually by the one that accepts it, in the
//! same transaction. Its request id makes repetitions harmless, so a claim that ended too early
//! starts nothing twice. What fails goes back to be claimed again, by whoever is quicker.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    depth::Depth,
    events::new_event,
    records::{Shared, lifecycle_event},
};
use crate::{
    backends::{
        database::{Claim, ClaimedExecution},
        execution_service::ExecutionService,
    },
    config,
    connection::Operation,
    error::{Error, ErrorKind},
    model::{
        executions::{Execution, Outcome, StartRequest, Status},
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
    claimed: mpsc::Sender<ClaimedExecution>,
    taken: Mutex<Option<mpsc::Receiver<ClaimedExecution>>>,
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

pub(super) struct Place<'a>(mpsc::Permit<'a, ClaimedExecution>);

impl Place<'_> {
    pub(super) fn fill(self, execution: Execution) {
        let fence = Claim::FIRST_FENCE;
        self.0.send(ClaimedExecution { execution, fence, first_tried: None });
    }
}

/// What came of a hand-over that reached the backend.
enum Answer {
    Started,
    /// It was first tried so long ago that the backend may have forgotten it by now.
    TooLate,
}

impl Shared {
    /// Hands over until `stop`, then ends what it has begun.
    pub(super) async fn hand_over_accepted(&self, stop: &CancellationToken) {
        let Some(mut accepted) = self.queue.taken.lock().take() else { return };
        let mut under_way = FuturesUnordered::new();
        let mut failures = 0_u32;
        let mut next_look = Instant::now();
        while !stop.is_cancelled() {
            let room = PARALLEL - under_way.len();
            tokio::select! {
                () = stop.cancelled() => {}
                Some(handed_over) = under_way.next() => {
                    let recovered = handed_over && failures > 0;
                    failures = if handed_over { 0 } else { failures + 1 };
                    self.queue.failing.store(failures > 0, Ordering::Relaxed);
                    if recovered || failures > 0 {
                        next_look = Instant::now() + pause_after(failures);
                    }
                }
                Some(claimed) = accepted.recv(), if room > 0 => {
                    under_way.push(self.hand_over(claimed));
                }
                () = self.queue.unclaimed.notified(), if failures == 0 => {
                    next_look = Instant::now();
                }
                () = sleep_until(next_look), if room > 0 => {
                    // While the backend is out one execution is as good a question as many.
                    let most = if failures == 0 { room } else { 1 };
                    let claimed = self.claim(most).await;
                    if claimed.is_empty() {
                        failures = 0;
                        self.queue.failing.store(false, Ordering::Relaxed);
                    }
                    let more = claimed.len() == most && failures == 0;
                    let pause = if more { Duration::ZERO } else { self.config.sweep_interval };
                    next_look = Instant::now() + pause;
                    under_way.extend(claimed.into_iter().map(|claimed| self.hand_over(claimed)));
                }
            }
        }
        while under_way.next().await.is_some() {}
        // Others need not wait until the claims end.
        while let Ok(claimed) = accepted.try_recv() {
            self.release(&claimed, true).await;
        }
    }

    async fn claim(&self, most: usize) -> Vec<ClaimedExecution> {
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
            Vec::new()
        })
    }

    /// False when the backend is out.
    async fn hand_over(&self, claimed: ClaimedExecution) -> bool {
        match self.try_hand_over(&claimed).await {
            Ok(()) => true,
            // The claim ends by itself, and another try finds what this one has come to.
            Err(error) => {
                let id = &claimed.execution.id;
                tracing::debug!(%error, execution.id = id, "a hand-over will be repeated");
                !error.kind().is_outage()
            }
        }
    }

    async fn try_hand_over(&self, claimed: &ClaimedExecution) -> Result<(), Error> {
        let mut execution = claimed.execution.clone();
        let request = &start_request(&execution);
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
                return self.reject(claimed, message).await;
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
        self.apply(&mut execution, &outcome).await?;
        self.metrics.outbox_delivered(Destination::ExecutionService, 1);
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
            return self.reject(claimed, &error.to_string()).await;
        }
        Ok(())
    }

    async fn reject(&self, claimed: &ClaimedExecution, reason: &str) -> Result<(), Error> {
        let (id, fence) = (&claimed.execution.id, claimed.fence);
        let message = format!("start_rejected: {reason}");
        let outcome = &Outcome::ended(Status::Failed, message, time::now());
        let rejected = claimed.execution.after(outcome);
        let announcement = &new_event(&lifecycle_event(&rejected, Status::Failed));
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
            self.changed(&rejected, 1);
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
