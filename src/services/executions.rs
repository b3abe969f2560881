//! Starting, watching and steering executions.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    sync::{broadcast, mpsc},
    time::{Instant, sleep, sleep_until},
};

use super::{
    events::Events,
    follower,
    records::{self, Shared, has_ended},
};
use crate::{
    backends::{
        database::{Acceptance, Database, KeyUse},
        execution_service::ExecutionService,
    },
    config,
    connection::{Managed, Operation},
    error::{Error, ErrorKind},
    model::{
        executions::{Execution, ListFilter, Status},
        time,
    },
    telemetry::metrics::Metrics,
};

const ANSWER: Operation = Operation::idempotent("answer");
const LIST: Operation = Operation::idempotent("executions");
const SIGNAL: Operation = Operation::once("signal");
// A worker answers, so its silence says nothing of the service.
const QUERY: Operation = Operation::passed_on("query");
const CANCEL: Operation = Operation::idempotent("cancel");
const TERMINATE: Operation = Operation::idempotent("terminate");

/// How often a waiting caller looks into the database while the backend cannot be asked.
const DATABASE_POLL: Duration = Duration::from_millis(500);

/// Changes of status that wait to be published; further ones are not announced.
const ANNOUNCEMENTS: usize = 10_000;

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

/// An `Idempotency-Key` as it came with a request.
#[derive(Clone, Debug)]
pub struct RequestKey {
    /// Principal, method and route.
    pub scope: String,
    /// The key.
    pub key: String,
    /// Hash of the request body.
    pub body_hash: String,
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
    /// Keeps the records.
    pub database: Managed<dyn Database>,
    /// Runs them.
    pub service: Managed<dyn ExecutionService>,
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
        let (announcements, announced) = mpsc::channel(ANNOUNCEMENTS);
        for workflow in config.workflows.keys() {
            for status in Status::ALL {
                parts.metrics.declare_execution(workflow, status.as_str());
            }
        }
        parts.database.declare(&[ANSWER, LIST]);
        parts.database.declare(&records::DATABASE_OPERATIONS);
        parts.database.declare(&follower::DATABASE_OPERATIONS);
        parts.service.declare(&[SIGNAL, QUERY, CANCEL, TERMINATE]);
        parts.service.declare(&records::SERVICE_OPERATIONS);
        parts.service.declare(&follower::SERVICE_OPERATIONS);
        Self(Arc::new(Shared {
            database: parts.database,
            service: parts.service,
            events: parts.events,
            backend: config.execution_service.backend.clone(),
            workflows,
            config: config.executions.clone(),
            keep_answers: config.idempotency.retention,
            request_timeout: config.server.request_timeout,
            metrics: parts.metrics,
            changed: broadcast::Sender::new(CHANGES),
            announcements,
            announced: Mutex::new(Some(announced)),
        }))
    }

    /// Accepts an execution and hands it over.
    ///
    /// `render` writes the answer that repetitions of the request get.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown workflow or a bad id, `AlreadyExists` for a taken id,
    /// `KeyReused` and `Conflict` by the idempotency key, or why nothing was accepted.
    pub async fn start(
        &self,
        request: NewExecution,
        key: Option<RequestKey>,
        render: impl Fn(&Execution) -> String,
    ) -> Result<Started, Error> {
        let shared = &self.0;
        let execution = shared.record(request)?;
        let key = key.map(|key| KeyUse {
            scope: key.scope,
            key: key.key,
            body_hash: key.body_hash,
            busy_for: shared.request_timeout,
            keep_for: shared.keep_answers,
        });
        let execution = match shared.accept(&execution, key.as_ref()).await? {
            Acceptance::Stored => shared.hand_over_or_withdraw(execution, key.as_ref()).await?,
            Acceptance::Unanswered(stored) => shared.hand_over_again(*stored).await,
            Acceptance::Answered(answer) => return Ok(Started::Before(answer)),
            Acceptance::IdTaken => {
                let message = format!("the id {:?} is taken", execution.id);
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
            Acceptance::KeyReused => {
                let message = "the Idempotency-Key was used for another request";
                return Err(Error::new(ErrorKind::KeyReused, message));
            }
            Acceptance::Busy => {
                let message = "the first request with this Idempotency-Key is not answered yet";
                return Err(Error::new(ErrorKind::Conflict, message));
            }
        };
        if let Some(key) = &key {
            let answer = render(&execution);
            let kept = shared
                .database
                .call(ANSWER, |database| {
                    let answer = &answer;
                    async move { database.answer(key, answer).await }
                })
                .await;
            // The execution stands; a repetition finds it by the key and answers from it.
            if let Err(error) = kept {
                tracing::warn!(%error, execution.id = execution.id, "the answer cannot be kept");
            }
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
        execution.status == Status::Running && age.unsigned_abs() > self.0.config.confirm_within
    }

    /// Executions, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error> {
        self.0
            .database
            .call(LIST, |database| async move { database.executions(filter).await })
            .await
    }

    /// Waits up to `wait`, and no longer than the configuration allows, for an execution to end.
    ///
    /// # Errors
    /// As [`Executions::get`].
    pub async fn wait(&self, id: &str, wait: Duration) -> Result<Execution, Error> {
        let deadline = Instant::now() + wait.min(self.0.config.max_wait);
        let mut changed = self.0.changed.subscribe();
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

    /// Asks an execution to end.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it has ended; or why the backend cannot be asked.
    pub async fn cancel(&self, id: &str) -> Result<Execution, Error> {
        let execution = self.0.steerable(id).await?;
        self.0
            .service
            .call(CANCEL, |service| async move { service.cancel(id).await })
            .await
            .map_err(|error| ended_meanwhile(error, id))?;
        self.0.refresh(execution).await
    }

    /// Ends an execution by force.
    ///
    /// # Errors
    /// As [`Executions::cancel`].
    pub async fn terminate(&self, id: &str, reason: &str) -> Result<Execution, Error> {
        let execution = self.0.steerable(id).await?;
        self.0
            .service
            .call(TERMINATE, |service| async move { service.terminate(id, reason).await })
            .await
            .map_err(|error| ended_meanwhile(error, id))?;
        self.0.refresh(execution).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Executions::cancel`]; `Unsupported` when the backend has no signals.
    pub async fn signal(&self, id: &str, name: &str, input: &Value) -> Result<(), Error> {
        self.0.steerable(id).await?;
        self.0
            .service
            .call(SIGNAL, |service| async move { service.signal(id, name, input).await })
            .await
            .map_err(|error| ended_meanwhile(error, id))
    }

    /// Asks a question; ended executions answer too, where the backend can.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` for an unknown query, `Unsupported`, or why the backend cannot
    /// be asked.
    pub async fn query(&self, id: &str, name: &str, input: &Value) -> Result<Value, Error> {
        let execution = self.0.get(id).await?;
        self.0.served_here(&execution)?;
        self.0
            .service
            .call(QUERY, |service| async move { service.query(id, name, input).await })
            .await
            .map_err(Error::without_effect)
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
