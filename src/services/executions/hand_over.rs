//! Starts accepted executions on the execution service.
//!
//! Owns the way from the acceptance of an execution to its start: the queue, the claims of this
//! process and the starts in progress. The facade fills the queue; the rest is a task.
//!
//! An execution is claimed by one process at a time, usually by the one that accepts it, in the
//! same transaction. Its request id makes repetitions harmless, so a claim that ended too early
//! starts nothing twice. An execution that fails to start is claimed again, by the quickest
//! process.

mod pace;
mod queue;
mod under_way;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(super) use self::queue::Place;
use self::{queue::Queue, under_way::HandOvers};
use super::{
    Parts,
    records::{Records, announcement},
};
use crate::{
    backends::{
        database::{Claim, ClaimedExecution, ClaimedExecutions, Release},
        execution_service::{ExecutionService, Started},
    },
    config::Config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        backoff::Backoff,
        executions::{Execution, OpenExecution, Outcome, StartRequest, Status},
        time,
    },
    services::depth::Depth,
};

/// The most executions that are started side by side.
const MOST_STARTS: usize = 64;
/// Executions that are claimed before there is room for them, so that no start waits for a claim.
const AHEAD: usize = 256;
/// The most bytes of inputs that one claim brings, unless its first execution alone has more.
const CLAIM_BYTES: i64 = 4 << 20;
/// Answers that are being stored before no further start begins.
const MOST_STORING: usize = 1024;
/// Pauses after failed starts. Short, because an open breaker makes an attempt cheap.
const RETRY: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(1));
/// Pauses after the backend asked for fewer calls.
const THROTTLED: Backoff = Backoff::doubling(Duration::from_millis(10), Duration::from_secs(1));
/// The pause after the backend refused an execution as such.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct HandOver {
    /// Identifies this process among the replicas.
    owner: Arc<str>,
    records: Arc<Records>,
    service: Client<dyn ExecutionService>,
    queue: Queue,
    /// The waiting executions.
    pub(super) depth: Depth,
    lease: Duration,
    sweep_interval: Duration,
    max_refusals: i32,
    /// The most starts side by side, so that requests of clients find room on the connection.
    most_starts: usize,
}

/// The answer of the backend to a start.
enum Answer {
    /// It concerns this very execution, and is stored.
    Verdict(Verdict),
    /// The backend asks for fewer calls.
    Throttled,
    /// The backend was not reached, or did not answer.
    Failed {
        /// True when it certainly has not received the start.
        untried: bool,
    },
}

/// What the backend says of one execution.
enum Verdict {
    /// It runs, or has run.
    Started,
    /// Another execution holds the id.
    IdTaken,
    /// It was first tried so long ago that the backend may have forgotten it.
    TooLate,
    /// The backend refuses it.
    Refused(Error),
}

impl HandOver {
    pub(super) fn new(records: &Arc<Records>, parts: &Parts, config: &Config) -> Self {
        Self {
            owner: Arc::clone(&parts.owner),
            records: Arc::clone(records),
            // The loop repeats a start itself.
            service: parts.service.unretried(),
            queue: Queue::new(),
            depth: parts.events.executions(),
            lease: config.executions.lease,
            sweep_interval: config.executions.sweep_interval,
            max_refusals: config.outbox.max_refusals,
            most_starts: (config.execution_service.concurrency.max_in_flight / 2)
                .clamp(1, MOST_STARTS),
        }
    }

    /// A place for an execution that is to start as soon as it is accepted, with the claim to store
    /// with it; `None` when this process has enough to do.
    pub(super) fn place(&self) -> Option<(Place<'_>, Claim)> {
        let claim = || Claim { owner: self.owner.to_string(), lease: self.lease };
        self.queue.place().map(|place| (place, claim()))
    }

    /// Takes an execution that was just accepted, and claimed with its place if it has one.
    pub(super) fn accepted(&self, execution: &Execution, place: Option<Place<'_>>) {
        self.depth.accepted(1);
        match place {
            Some(place) => place.fill(execution.clone(), self.lease),
            None => self.queue.wake(),
        }
    }

    /// Records that a dead letter is to be started again.
    pub(super) fn redriven(&self) {
        self.depth.accepted(1);
        self.queue.wake();
    }

    /// True when the backend was down at the last attempt.
    pub(super) fn is_failing(&self) -> bool {
        self.queue.is_failing()
    }

    /// Starts executions until `stop`, then finishes the starts in progress.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut accepted = self.queue.accepted.lock().await;
        HandOvers::new(&self, &stop).run(&mut accepted).await;
    }

    async fn claim(&self, most: usize) -> ClaimedExecutions {
        let (backend, owner, lease) = (&self.records.backend, &*self.owner, self.lease);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let database = &self.records.database;
        let claimed = database.claim_executions(backend, owner, lease, most, CLAIM_BYTES).await;
        // Outages are logged by the probes of the connection that is down.
        claimed.unwrap_or_else(|error| {
            tracing::debug!(%error, "accepted executions cannot be claimed");
            ClaimedExecutions::default()
        })
    }

    /// Asks the backend to start an execution.
    async fn ask_to_start(&self, claimed: &ClaimedExecution) -> Answer {
        let error = match self.service.start(&start_request(claimed)).await {
            Ok(Started::Started) => return Answer::Verdict(Verdict::Started),
            Ok(Started::TooLate) => return Answer::Verdict(Verdict::TooLate),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::AlreadyExists => Answer::Verdict(Verdict::IdTaken),
            ErrorKind::Throttled => Answer::Throttled,
            kind if kind.refuses_call() => Answer::Verdict(Verdict::Refused(error)),
            kind => {
                let id = &claimed.execution.id;
                tracing::debug!(%error, execution.id = id, "a start will be repeated");
                Answer::Failed { untried: kind.is_outage() && !error.outcome_unknown() }
            }
        }
    }

    /// Stores a verdict. If that fails, the claim ends by itself, and another attempt gets the same
    /// verdict.
    async fn keep(&self, claimed: &ClaimedExecution, verdict: Verdict, stop: &CancellationToken) {
        let execution = &OpenExecution::from(&claimed.execution);
        let kept = match verdict {
            Verdict::Started => self.store(execution, &Outcome::running(time::now()), stop).await,
            Verdict::IdTaken => {
                let outcome = Outcome::ended(Status::Failed, "id_taken", time::now());
                self.store(execution, &outcome, stop).await
            }
            Verdict::TooLate => {
                let message = "it was first tried so long ago that it may have run since";
                self.reject(execution, claimed.fence, message).await
            }
            Verdict::Refused(error) => self.refused(claimed, &error).await,
        };
        if let Err(error) = kept {
            tracing::debug!(%error, execution.id, "what became of a start is not stored");
        }
    }

    /// Stores what became of a start. The backend must not be asked again, so this continues
    /// through an outage of the database, until `stop`.
    async fn store(
        &self,
        execution: &OpenExecution,
        outcome: &Outcome,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let begun = Instant::now();
        for failures in 1.. {
            let error = match self.records.apply(execution, outcome).await {
                Ok(_changed) => break,
                Err(error) => error,
            };
            if !error.kind().is_outage() || stop.is_cancelled() {
                return Err(error);
            }
            tracing::debug!(%error, execution.id, "a start cannot be stored yet");
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = sleep(RETRY.pause_after(failures)) => {}
            }
        }
        self.depth.delivered(begun, 1);
        Ok(())
    }

    async fn release(&self, claims: Vec<Release>) {
        let claims = &*claims;
        if let Err(error) = self.records.database.release_executions(claims).await {
            tracing::debug!(%error, "claims cannot be given back, they expire");
        }
    }

    /// Records that the backend refused this very execution.
    async fn refused(&self, claimed: &ClaimedExecution, error: &Error) -> Result<(), Error> {
        let (id, fence) = (&claimed.execution.id, claimed.fence);
        let refusals = self.records.database.count_refusal(id, fence, REFUSAL_PAUSE).await?;
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
        let done = self.records.database.reject_execution(id, fence, outcome, announcement).await?;
        if done {
            tracing::error!(
                execution.id = id,
                reason,
                "an execution cannot be started, it is a dead letter"
            );
            self.records.changed(execution, Status::Failed, 1);
        }
        Ok(())
    }
}

fn start_request(claimed: &ClaimedExecution) -> StartRequest {
    let ClaimedExecution { execution, first_tried, .. } = claimed;
    StartRequest {
        id: execution.id.clone(),
        request_id: execution.request_id.clone(),
        workflow: execution.workflow.clone(),
        definition: execution.definition.clone(),
        input: execution.input.clone(),
        timeout: execution.timeout,
        traceparent: execution.traceparent.clone(),
        first_tried: *first_tried,
    }
}
