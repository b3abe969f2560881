//! The records of executions: their creation, reads, changes and announcements.
//!
//! Owns the configured workflows, the rows of executions in the database, and the notification of
//! their changes. Called by every module in this folder; no other code changes an execution.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::sync::broadcast;

use super::{NewExecution, Parts};
use crate::{
    backends::{
        database::{Database, NewEvent, StatusChange},
        execution_service::ExecutionService,
    },
    config::Config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        events::Event,
        executions::{Execution, OpenExecution, Outcome, Status, Workflow},
        ids,
        json::Json,
        time,
    },
    services::{
        commits::{Commit, Commits, Sharing},
        events::{Events, new_event},
    },
    telemetry::{metrics::Metrics, traces::TraceContext},
};

/// The longest single wait on the backend; a longer wait is made of several.
const BACKEND_WAIT: Duration = Duration::from_secs(20);

/// The number of changes that a waiting caller may lag behind before it looks again.
const CHANGES: usize = 1024;

#[derive(Debug)]
pub(super) struct Records {
    pub(super) database: Client<dyn Database>,
    service: Client<dyn ExecutionService>,
    events: Events,
    /// The backend of the execution service, on which new executions start.
    pub(super) backend: String,
    workflows: BTreeMap<String, Workflow>,
    default_timeout: Option<Duration>,
    metrics: Arc<Metrics>,
    changing: Commits<Changing>,
    /// Ids of executions whose status changed here.
    changes: broadcast::Sender<String>,
}

/// Stores the changes that share a commit.
#[derive(Debug)]
struct Changing {
    database: Client<dyn Database>,
}

impl Commit for Changing {
    type Item = StatusChange;
    type Answer = bool;

    fn rows(_change: &StatusChange) -> usize {
        1
    }

    fn names<'a>(change: &'a StatusChange, add: &mut dyn FnMut(&[&'a str])) {
        add(&[&change.id]);
    }

    async fn store(&self, changes: &[&StatusChange]) -> Result<Vec<bool>, Error> {
        self.database.change(changes).await
    }
}

impl Records {
    /// Records of executions of the configured workflows, whose metric series exist from now on.
    pub(super) fn new(parts: &Parts, config: &Config) -> Self {
        for workflow in config.workflows.keys() {
            for status in Status::ALL {
                parts.metrics.declare_execution(workflow, status.as_str());
            }
        }
        let workflows =
            config.workflows.iter().map(|(name, w)| (name.clone(), w.definition())).collect();
        Self {
            database: parts.database.clone(),
            service: parts.service.clone(),
            events: parts.events.clone(),
            backend: config.execution_service.backend.clone(),
            workflows,
            default_timeout: config.executions.default_timeout,
            metrics: Arc::clone(&parts.metrics),
            changing: Commits::new(
                Changing { database: parts.database.clone() },
                Sharing { linger: Duration::ZERO, ..parts.sharing },
                parts.tasks.clone(),
            ),
            changes: broadcast::Sender::new(CHANGES),
        }
    }

    /// A new record, which is not stored yet.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown workflow or a bad id.
    pub(super) fn new_record(&self, request: NewExecution) -> Result<Execution, Error> {
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
            timeout: request.timeout.or(self.default_timeout),
            definition,
            traceparent: TraceContext::current().map(|trace| trace.to_string()),
            redrives: 0,
        })
    }

    /// Stores a change of status together with the events that announce it, in a commit that it
    /// shares with concurrent changes. The caller that makes the change announces it; others find it
    /// made. Returns true when this call made it.
    pub(super) async fn apply(
        &self,
        execution: &OpenExecution,
        outcome: &Outcome,
    ) -> Result<bool, Error> {
        // The start time that was stored first stands, because clocks of backends differ from ours.
        let started_at = execution.started_at.or(outcome.started_at);
        let began = execution.status == Status::Accepted && started_at.is_some();
        let skipped = (began && outcome.status != Status::Running)
            .then(|| new_event(lifecycle_event(execution, Status::Running, None)));
        let announcements: Vec<NewEvent> =
            skipped.into_iter().chain([announcement(execution, outcome)]).collect();
        let (status, events) = (outcome.status, announcements.len());
        let outcome = Outcome { started_at, ..outcome.clone() };
        let change = StatusChange { id: execution.id.clone(), outcome, announcements };
        let unknown = || Error::new(ErrorKind::OutcomeUnknown, "the change may not be stored");
        let changed = self.changing.add(change).await.unwrap_or_else(|| Err(unknown()))?;
        if changed {
            self.changed(execution, status, events);
        }
        Ok(changed)
    }

    /// Makes a dead letter `accepted` again, and announces it. False when there is none.
    pub(super) async fn redrive(&self, id: &str) -> Result<bool, Error> {
        let Some(rejected) = self.database.execution(id).await? else { return Ok(false) };
        let redrives = rejected.redrives;
        let accepted = OpenExecution {
            status: Status::Accepted,
            started_at: None,
            redrives: redrives + 1,
            ..OpenExecution::from(&rejected)
        };
        let announcement = &acceptance(&accepted);
        let found = self.database.redrive_execution(id, redrives, announcement).await?;
        if found {
            self.changed(&accepted, Status::Accepted, 1);
        }
        Ok(found)
    }

    /// Refuses new executions while too many events about executions wait.
    pub(super) fn admit(&self) -> Result<(), Error> {
        self.events.admit_execution()
    }

    /// Notifies of a change to `status` that was stored with this many events.
    pub(super) fn changed(&self, execution: &OpenExecution, status: Status, events: usize) {
        self.metrics.execution(&execution.workflow, status.as_str());
        self.events.announced(&execution.id, events);
        self.tell(&execution.id);
    }

    /// Notifies waiting callers that the status of `id` has changed.
    pub(super) fn tell(&self, id: &str) {
        // There may be no waiting caller.
        let _heard = self.changes.send(id.to_owned()).is_ok();
    }

    /// Ids of executions whose status changes here from now on.
    pub(super) fn watch(&self) -> Changes {
        Changes(self.changes.subscribe())
    }

    pub(super) async fn get(&self, id: &str) -> Result<Execution, Error> {
        let found = self.database.execution(id).await.map_err(Error::without_effect)?;
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

    /// Refuses another backend's execution, because the backend chosen first always serves it.
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

    /// Asks the backend for the status of an execution, and stores it.
    pub(super) async fn refresh(&self, mut execution: Execution) -> Result<Execution, Error> {
        let id = execution.id.clone();
        let id = &id;
        let outcome = self.service.describe(id).await?.on_our_clock(execution.started_at);
        if self.apply(&(&execution).into(), &outcome).await? {
            execution = execution.after(&outcome);
        }
        Ok(execution)
    }

    /// Waits on the backend for an execution to end, then asks for its status and stores it.
    pub(super) async fn ask_backend(
        &self,
        execution: &Execution,
        wait: Duration,
    ) -> Result<(), Error> {
        self.served_here(execution)?;
        let lease = self.service.lease().await?;
        tokio::select! {
            ended = lease.until_ended(&execution.id, wait.min(BACKEND_WAIT)) => ended?,
            // The next attempt asks the backend's successor.
            () = lease.retired() => return Ok(()),
        }
        drop(lease);
        self.refresh(execution.clone()).await.map(drop)
    }
}

/// Changes of status that happen here.
pub(super) struct Changes(broadcast::Receiver<String>);

impl Changes {
    /// Waits until the status of `id` has changed here, or may have.
    pub(super) async fn of(&mut self, id: &str) {
        while matches!(self.0.recv().await, Ok(other) if other != id) {}
    }
}

/// The event that announces the `outcome` of an execution.
pub(super) fn announcement(execution: &OpenExecution, outcome: &Outcome) -> NewEvent {
    new_event(lifecycle_event(execution, outcome.status, Some(outcome)))
}

/// The event that announces the acceptance of an execution.
pub(super) fn acceptance(execution: &OpenExecution) -> NewEvent {
    new_event(lifecycle_event(execution, Status::Accepted, None))
}

/// The data of an event about a change of status.
#[derive(Serialize)]
struct Change<'a> {
    id: &'a str,
    workflow: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// The id depends only on the change, not on the process that announces it.
fn lifecycle_event(execution: &OpenExecution, status: Status, outcome: Option<&Outcome>) -> Event {
    let change = Change {
        id: &execution.id,
        workflow: &execution.workflow,
        status,
        result: outcome.and_then(|outcome| outcome.result.as_ref()),
        error: outcome.and_then(|outcome| outcome.error.as_deref()),
    };
    // Text and JSON have a JSON form.
    let data = Json::of(&change).unwrap_or_default();
    let id = match execution.redrives {
        0 => format!("{}:{status}", execution.id),
        redrives => format!("{}:{status}:{redrives}", execution.id),
    };
    let subject = Some(execution.id.clone());
    let event = Event::with_id(id, status.event_type(), subject, Some(&data));
    match &execution.traceparent {
        Some(traceparent) => event.within_trace(traceparent),
        None => event,
    }
}

pub(super) fn has_ended(id: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the execution {id:?} has ended"))
}
