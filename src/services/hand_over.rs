//! Hands accepted executions over to the execution service.
//!
//! An execution is claimed by one process at a time, usually by the one that accepts it, in the
//! same transaction. Its request id makes repetitions harmless, so a claim that ended too early
//! starts nothing twice. What fails goes back to be claimed again, by whoever is quicker.

mod queue;
mod under_way;

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub(super) use self::queue::Queue;
use self::under_way::{Ended, HandOvers};
use super::records::{Shared, announcement};
use crate::{
    backends::{
        database::{ClaimedExecution, ClaimedExecutions},
        execution_service::Started,
    },
    error::{Error, ErrorKind},
    model::{
        executions::{OpenExecution, Outcome, StartRequest, Status},
        time,
    },
    telemetry::metrics::Destination,
};

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

impl Shared {
    /// Hands over until `stop`, then ends what it has begun.
    pub(super) async fn hand_over_accepted(self: &Arc<Self>, stop: &CancellationToken) {
        let Some(accepted) = self.queue.taken.lock().take() else { return };
        HandOvers::new(self, stop).run(accepted).await;
    }

    async fn claim(&self, most: usize) -> ClaimedExecutions {
        let (backend, owner, lease) = (&self.backend, &*self.owner, self.config.lease);
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let claimed = self.database.claim_executions(backend, owner, lease, most).await;
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
        let outcome = match self.service.start(&start_request(claimed)).await {
            Ok(Started::Started) => Outcome::running(time::now()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Outcome::ended(Status::Failed, "id_taken", time::now())
            }
            Ok(Started::TooLate) => {
                let message = "it was first tried so long ago that it may have run since";
                return self.reject(execution, claimed.fence, message).await;
            }
            Err(error) if error.kind().refuses_call() => {
                return self.refused(claimed, &error).await;
            }
            Err(error) => {
                let untried = error.kind().is_outage() && !error.outcome_unknown();
                self.release(claimed, claimed.first_tried.is_none() && untried).await;
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
        let released = self.database.release_execution(id, fence, untried).await;
        if let Err(error) = released {
            tracing::debug!(%error, execution.id = id, "a claim cannot be given back, it expires");
        }
    }

    /// The backend refused this very execution.
    async fn refused(&self, claimed: &ClaimedExecution, error: &Error) -> Result<(), Error> {
        let (id, fence) = (&claimed.execution.id, claimed.fence);
        let refusals = self.database.count_refusal(id, fence, REFUSAL_PAUSE).await?;
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
        let done = self.database.reject_execution(id, fence, outcome, announcement).await?;
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
            let count = async |most| self.database.waiting_executions(most).await;
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
