//! Starting, watching and steering executions.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, sleep_until},
};

use super::{
    acceptor::{Acceptor, RequestKey},
    events::Events,
    hand_over::Queue,
    records::{Shared, acceptance, has_ended},
};
use crate::{
    backends::{
        database::{Acceptance, Admission, Claim, Database, Ended, NewRecord, Work},
        execution_service::ExecutionService,
    },
    config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        backlog::Backlog,
        executions::{Ending, Execution, ListFilter, OpenExecution, Status},
        time,
    },
    telemetry::metrics::Metrics,
};

/// How often a waiting caller looks into the database while the backend cannot be asked.
const DATABASE_POLL: Duration = Duration::from_millis(500);

/// How long a signal or query waits for its execution to be handed over.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);

/// Changes that a waiting caller may lag behind before it looks again.
const CHANGES: usize = 1024;

/// What a client asks to be executed.
#[derive(Clone, Debug)]
pub struct NewExecution {
    /// The workflow's name.
    pub workflow: String,
    /// What it is given.
    pub input: Value,
    /// The id, if the client chooses it.
    pub id: Option<String>,
    /// Time it may take in all.
    pub timeout: Option<Duration>,
}

/// The answer to a request that starts an execution.
#[derive(Clone, Debug)]
pub enum Started {
    /// It was accepted now.
    New(Box<Execution>),
    /// This was answered before.
    Before(String),
}

/// Executions over the database and the execution service.
#[derive(Clone, Debug)]
pub struct Executions(pub(super) Arc<Shared>);

/// What [`Executions`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Identifies this process among the replicas.
    pub owner: Arc<str>,
    /// Accepts them.
    pub acceptor: Acceptor,
    /// Keeps the records.
    pub database: Client<dyn Database>,
    /// Runs them.
    pub service: Client<dyn ExecutionService>,
    /// Announces changes of status.
    pub events: Events,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

impl Executions {
    /// Executions of the configured workflows.
    #[must_use]
    pub fn new(parts: Parts, config: &config::Config) -> Self {
        let workflows =
            config.workflows.iter().map(|(name, w)| (name.clone(), w.definition())).collect();
        for workflow in config.workflows.keys() {
            for status in Status::ALL {
                parts.metrics.declare_execution(workflow, status.as_str());
            }
        }
        Self(Arc::new(Shared {
            owner: parts.owner,
            acceptor: parts.acceptor,
            queue: Queue::new(&config.outbox),
            database: parts.database,
            service: parts.service,
            events: parts.events,
            backend: config.execution_service.backend.clone(),
            workflows,
            config: config.executions.clone(),
            max_refusals: config.outbox.max_refusals,
            metrics: parts.metrics,
            changes: broadcast::Sender::new(CHANGES),
        }))
    }

    /// Accepts an execution, which is handed over in the background.
    ///
    /// `render` writes the answer that repetitions of the request get.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown workflow or a bad id, `AlreadyExists` for a taken id,
    /// `KeyReused` and `Conflict` by the idempotency key, `Overloaded` while too many wait,
    /// `OutcomeUnknown` when the answer to the commit was lost, or why nothing was accepted.
    pub async fn start(
        &self,
        request: NewExecution,
        key: Option<RequestKey>,
        render: impl FnOnce(&Execution) -> String,
    ) -> Result<Started, Error> {
        let shared = &self.0;
        let execution = shared.record(request)?;
        shared.queue.depth.admit()?;
        let place = shared.queue.place();
        let claim = place
            .is_some()
            .then(|| Claim { owner: shared.owner.to_string(), lease: shared.config.lease });
        let head = OpenExecution::from(&execution);
        let announcement = acceptance(&head);
        let key = key.map(|key| shared.acceptor.key_use(key, render(&execution)));
        let record = NewRecord { execution: execution.clone(), announcement, claim };
        let work = Work::Execution(Box::new(record));
        match shared.acceptor.accept(Admission { work, key }).await? {
            Acceptance::IdTaken => {
                let message = format!("the id {:?} is taken", execution.id);
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
            Acceptance::Answered(answer) => return Ok(Started::Before(answer)),
            _ => {}
        }
        shared.queue.depth.accepted(1);
        shared.changed(&head, Status::Accepted, 1);
        match place {
            Some(place) => place.fill(execution.clone(), shared.config.lease),
            None => shared.queue.wake(),
        }
        Ok(Started::New(Box::new(execution)))
    }

    /// One execution.
    ///
    /// # Errors
    /// `NotFound`, or why the database cannot be asked.
    pub async fn get(&self, id: &str) -> Result<Execution, Error> {
        self.0.get(id).await
    }

    /// Whether the status may have changed since the backend was last asked.
    #[must_use]
    pub fn is_stale(&self, execution: &Execution) -> bool {
        let confirmed = execution.confirmed_at.unwrap_or(execution.created_at);
        let age = time::now().duration_since(confirmed);
        !execution.status.is_terminal() && age.unsigned_abs() > self.0.config.confirm_within
    }

    /// Executions, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error> {
        self.0.database.executions(filter).await
    }

    /// Waits up to `wait`, and no longer than the configuration allows, for an execution to end.
    ///
    /// # Errors
    /// As [`Executions::get`].
    pub async fn wait(&self, id: &str, wait: Duration) -> Result<Execution, Error> {
        let deadline = Instant::now() + wait.min(self.0.config.max_wait);
        let mut changed = self.0.changes.subscribe();
        loop {
            let execution = self.0.get(id).await?;
            let now = Instant::now();
            if execution.status.is_terminal() || now >= deadline {
                return Ok(execution);
            }
            let asked = async {
                if self.0.ask_backend(&execution, deadline - now).await.is_err() {
                    sleep(DATABASE_POLL).await;
                }
            };
            tokio::select! {
                () = asked => {}
                () = told_of(&mut changed, id) => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// The executions that wait for their hand-over, as they were counted last.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        self.0.queue.depth.backlog()
    }

    /// Whether an execution has waited for so long that the service is degraded.
    #[must_use]
    pub fn are_late(&self) -> bool {
        self.0.queue.depth.is_late()
    }

    /// Tells that a dead letter is to be handed over again.
    pub(super) fn redriven(&self, id: &str) {
        self.0.queue.depth.accepted(1);
        self.0.queue.wake();
        // Nobody may be waiting.
        let _heard = self.0.changes.send(id.to_owned()).is_ok();
    }

    /// Asks an execution to end.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it has ended; or why the backend cannot be asked.
    pub async fn cancel(&self, id: &str) -> Result<Execution, Error> {
        self.end(id, &Ending::Cancel).await
    }

    /// Ends an execution by force.
    ///
    /// # Errors
    /// As [`Executions::cancel`].
    pub async fn terminate(&self, id: &str, reason: &str) -> Result<Execution, Error> {
        self.end(id, &Ending::Terminate { reason: reason.to_owned() }).await
    }

    /// What no backend has seen ends at once; what one may have seen ends when it is known to run.
    async fn end(&self, id: &str, ending: &Ending) -> Result<Execution, Error> {
        let shared = &self.0;
        let mut execution = shared.steerable(id).await?;
        if execution.status == Status::Accepted {
            match shared.end_accepted(&execution, ending).await? {
                Ended::Now | Ended::Later => return shared.get(id).await,
                Ended::NotAccepted => execution = shared.steerable(id).await?,
            }
        }
        shared.send_ending(id, ending).await.map_err(|error| ended_meanwhile(error, id))?;
        shared.refresh(execution).await
    }

    /// Waits a moment for an execution that was accepted just now to be handed over.
    async fn handed_over(&self, id: &str) -> Result<(), Error> {
        let deadline = Instant::now() + HAND_OVER_WAIT;
        let mut changes = self.0.changes.subscribe();
        while self.0.steerable(id).await?.status == Status::Accepted {
            if self.0.queue.is_failing() || Instant::now() >= deadline {
                let message = "the execution has not been handed over yet";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            tokio::select! {
                () = told_of(&mut changes, id) => {}
                () = sleep(DATABASE_POLL) => {}
            }
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Executions::cancel`]; `Unsupported` when the backend has no signals.
    pub async fn signal(&self, id: &str, name: &str, input: &Value) -> Result<(), Error> {
        self.handed_over(id).await?;
        self.0.service.signal(id, name, input).await.map_err(|error| ended_meanwhile(error, id))
    }

    /// Asks a question; ended executions answer too, where the backend can.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` for an unknown query, `Unsupported`, or why the backend cannot
    /// be asked, or has not been given it yet.
    pub async fn query(&self, id: &str, name: &str, input: &Value) -> Result<Value, Error> {
        let execution = self.0.get(id).await?;
        self.0.served_here(&execution)?;
        if !execution.status.is_terminal() {
            self.handed_over(id).await?;
        }
        self.0.service.query(id, name, input).await.map_err(Error::without_effect)
    }
}

/// Waits until the status of `id` has changed here, or may have.
async fn told_of(changed: &mut broadcast::Receiver<String>, id: &str) {
    while matches!(changed.recv().await, Ok(other) if other != id) {}
}

fn ended_meanwhile(error: Error, id: &str) -> Error {
    match error.kind() {
        ErrorKind::NotFound => has_ended(id),
        _ => error,
    }
}
