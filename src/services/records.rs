//! The records behind the executions: how they are accepted, handed over, kept up to date, and
//! announced.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep},
};

use super::{events::Events, executions::NewExecution};
use crate::{
    backends::{
        database::{Acceptance, Database, KeyUse},
        execution_service::ExecutionService,
    },
    config,
    connection::{Managed, Operation},
    error::{Error, ErrorKind},
    model::{
        events::Event,
        executions::{Execution, Outcome, StartRequest, Status, Workflow},
        ids, time,
    },
    telemetry::{metrics::Metrics, traces::TraceContext},
};

const ACCEPT: Operation = Operation::once("accept");
const WITHDRAW: Operation = Operation::idempotent("withdraw");
const GET: Operation = Operation::idempotent("execution");
const CHANGE: Operation = Operation::idempotent("change");
// The stored request id makes repetitions harmless.
const START: Operation = Operation::idempotent("start");
const DESCRIBE: Operation = Operation::idempotent("describe");
pub(super) const DATABASE_OPERATIONS: [Operation; 4] = [ACCEPT, WITHDRAW, GET, CHANGE];
pub(super) const SERVICE_OPERATIONS: [Operation; 2] = [START, DESCRIBE];

/// How often a repeated request looks for the answer to the first one.
const ANSWER_POLL: Duration = Duration::from_millis(50);

/// Longest single wait on the backend; a longer wait is made of several.
const BACKEND_WAIT: Duration = Duration::from_secs(20);

/// What [`Executions`](super::executions::Executions) and its follower share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) database: Managed<dyn Database>,
    pub(super) service: Managed<dyn ExecutionService>,
    pub(super) events: Events,
    /// The backend of the execution service, which new executions are handed to.
    pub(super) backend: String,
    pub(super) workflows: BTreeMap<String, Workflow>,
    pub(super) config: config::Executions,
    pub(super) keep_answers: Duration,
    pub(super) request_timeout: Duration,
    pub(super) metrics: Arc<Metrics>,
    /// Ids of executions whose status changed here.
    pub(super) changed: broadcast::Sender<String>,
    pub(super) announcements: mpsc::Sender<Event>,
    /// Taken by the task that publishes them.
    pub(super) announced: Mutex<Option<mpsc::Receiver<Event>>>,
}

impl Shared {
    pub(super) fn record(&self, request: NewExecution) -> Result<Execution, Error> {
        let definition = self.workflows.get(&request.workflow).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.workflows.keys().map(String::as_str).collect();
            let message = format!(
                "there is no workflow {:?}; there are {}",
                request.workflow,
                known.join(", ")
            );
            Error::new(ErrorKind::InvalidInput, message)
        })?;
        if let Some(id) = &request.id {
            ids::check_client_id(id)
                .map_err(|message| Error::new(ErrorKind::InvalidInput, message))?;
        }
        Ok(Execution {
            id: request.id.unwrap_or_else(ids::new_id),
            workflow: request.workflow,
            input: request.input,
            status: Status::Accepted,
            result: None,
            error: None,
            created_at: time::now(),
            started_at: None,
            finished_at: None,
            confirmed_at: None,
            backend: self.backend.clone(),
            request_id: ids::new_id(),
            timeout: request.timeout.or(self.config.default_timeout),
            definition,
            traceparent: TraceContext::current().map(|trace| trace.to_string()),
        })
    }

    /// Stores the record; waits while the first request with the same key is being answered.
    pub(super) async fn accept(
        &self,
        execution: &Execution,
        key: Option<&KeyUse>,
    ) -> Result<Acceptance, Error> {
        // Answered before the request's own timeout would cut it off.
        let deadline = Instant::now() + self.request_timeout.mul_f64(0.8);
        loop {
            let acceptance = self
                .database
                .call(ACCEPT, |database| async move { database.accept(execution, key).await })
                .await;
            match acceptance {
                Ok(Acceptance::Busy) if Instant::now() < deadline => sleep(ANSWER_POLL).await,
                Ok(acceptance) => return Ok(acceptance),
                // The answer to the commit was lost: it may be stored or not.
                Err(error) if error.outcome_unknown() => {
                    let message = "it is not known whether the execution was accepted";
                    return Err(Error::new(ErrorKind::OutcomeUnknown, message).with_source(error));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands a new record over. What certainly did not reach the backend is withdrawn.
    pub(super) async fn hand_over_or_withdraw(
        &self,
        mut execution: Execution,
        key: Option<&KeyUse>,
    ) -> Result<Execution, Error> {
        let Err(error) = self.hand_over(&mut execution).await else { return Ok(execution) };
        if error.outcome_unknown() {
            tracing::warn!(%error, execution.id = execution.id, "a hand-over will be repeated");
            return Ok(execution);
        }
        let id = &execution.id;
        let withdrawn = self
            .database
            .call(WITHDRAW, |database| async move { database.withdraw(id, key).await })
            .await;
        match withdrawn {
            Ok(true) => Err(error),
            // Another replica has handed it over.
            Ok(false) => self.get(id).await,
            // It is stored and will be handed over, so it is accepted.
            Err(_) => Ok(execution),
        }
    }

    /// Hands a record of an earlier request over again, if that is open. Its first hand-over may
    /// have reached the backend, so it stays accepted whatever comes of this one.
    pub(super) async fn hand_over_again(&self, mut execution: Execution) -> Execution {
        if execution.status == Status::Accepted
            && let Err(error) = self.hand_over(&mut execution).await
        {
            tracing::warn!(%error, execution.id = execution.id, "a hand-over will be repeated");
        }
        execution
    }

    /// Hands a record over, and stores and announces what came of it.
    pub(super) async fn hand_over(&self, execution: &mut Execution) -> Result<(), Error> {
        let request = StartRequest {
            id: execution.id.clone(),
            request_id: execution.request_id.clone(),
            workflow: execution.workflow.clone(),
            definition: execution.definition.clone(),
            input: execution.input.clone(),
            timeout: execution.timeout,
            traceparent: execution.traceparent.clone(),
        };
        let request = &request;
        let started =
            self.service.call(START, |service| async move { service.start(request).await }).await;
        let outcome = match started {
            Ok(()) => Outcome::running(time::now()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Outcome::ended(Status::Failed, "id_taken", time::now())
            }
            Err(error) => return Err(error),
        };
        self.announce(execution, &[Status::Accepted]);
        match self.apply(execution, &outcome).await {
            Ok(_) => Ok(()),
            // The backend has it: the follower finds out what is not stored now.
            Err(error) => {
                tracing::warn!(%error, execution.id = execution.id, "a start cannot be stored yet");
                Ok(())
            }
        }
    }

    /// Stores a change of status. Whoever makes the change announces it; others find it made.
    pub(super) async fn apply(
        &self,
        execution: &mut Execution,
        outcome: &Outcome,
    ) -> Result<bool, Error> {
        let id = &execution.id;
        // The start that was stored first stands; clocks of backends differ from ours.
        let started_at = execution.started_at.or(outcome.started_at);
        let outcome = &Outcome { started_at, ..outcome.clone() };
        let changed = self
            .database
            .call(CHANGE, |database| async move { database.change(id, outcome).await })
            .await?;
        if changed {
            let skipped_running =
                execution.status == Status::Accepted && outcome.status != Status::Running;
            execution.status = outcome.status;
            execution.result.clone_from(&outcome.result);
            execution.error.clone_from(&outcome.error);
            execution.started_at = started_at;
            execution.finished_at = outcome.finished_at;
            execution.confirmed_at = Some(time::now());
            let began = skipped_running && started_at.is_some();
            let statuses =
                if began { vec![Status::Running, outcome.status] } else { vec![outcome.status] };
            self.announce(execution, &statuses);
            // Nobody may be waiting.
            let _heard = self.changed.send(execution.id.clone()).is_ok();
        }
        Ok(changed)
    }

    /// Counts changes of status and queues their events, in order and best effort, without holding
    /// up the caller.
    fn announce(&self, execution: &Execution, statuses: &[Status]) {
        for status in statuses {
            self.metrics.execution(&execution.workflow, status.as_str());
            if self.announcements.try_send(lifecycle_event(execution, *status)).is_err() {
                tracing::debug!(execution.id = execution.id, "a change of status is not announced");
            }
        }
    }

    pub(super) async fn get(&self, id: &str) -> Result<Execution, Error> {
        let found = self
            .database
            .call(GET, |database| async move { database.execution(id).await })
            .await
            .map_err(Error::without_effect)?;
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("no execution has the id {id:?}"))
        })
    }

    /// An execution that has not ended and that the backend in use serves.
    pub(super) async fn steerable(&self, id: &str) -> Result<Execution, Error> {
        let execution = self.get(id).await?;
        if execution.status.is_terminal() {
            return Err(has_ended(id));
        }
        self.served_here(&execution)?;
        Ok(execution)
    }

    /// A record is always served by the backend it was handed to.
    pub(super) fn served_here(&self, execution: &Execution) -> Result<(), Error> {
        if execution.backend == self.backend {
            return Ok(());
        }
        let message = format!(
            "the execution belongs to the backend {:?}, which is not in use",
            execution.backend
        );
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// Asks the backend where an execution stands, and stores it.
    pub(super) async fn refresh(&self, mut execution: Execution) -> Result<Execution, Error> {
        let id = execution.id.clone();
        let id = &id;
        let description = self
            .service
            .call(DESCRIBE, |service| async move { service.describe(id).await })
            .await?;
        self.apply(&mut execution, &description.outcome).await?;
        Ok(execution)
    }

    /// Waits on the backend for an execution to end, and stores what it says.
    pub(super) async fn ask_backend(
        &self,
        execution: &Execution,
        wait: Duration,
    ) -> Result<(), Error> {
        self.served_here(execution)?;
        let lease = self.service.lease().await?;
        let description = tokio::select! {
            description = lease.result(&execution.id, wait.min(BACKEND_WAIT)) => description?,
            // The next look asks its successor.
            () = lease.retired() => return Ok(()),
        };
        let mut execution = execution.clone();
        self.apply(&mut execution, &description.outcome).await.map(|_| ())
    }
}

/// Many replicas may announce one change; its id is always the same.
fn lifecycle_event(execution: &Execution, status: Status) -> Event {
    let mut data = json!({
        "id": execution.id,
        "workflow": execution.workflow,
        "status": status.as_str(),
    });
    if status == execution.status {
        if let Some(result) = &execution.result {
            data["result"] = result.clone();
        }
        if let Some(error) = &execution.error {
            data["error"] = json!(error);
        }
    }
    let mut event = Event::new(status.event_type(), Some(execution.id.clone()), Some(data));
    event.id = format!("{}:{status}", execution.id);
    if let Some(traceparent) = &execution.traceparent {
        event.extensions.insert("traceparent".to_owned(), json!(traceparent));
    }
    event
}

pub(super) fn has_ended(id: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the execution {id:?} has ended"))
}
