//! Executions: accepted durably, started on the execution service, followed and steered.
//!
//! [`Executions`] is the interface for the API. Behind it each part has one owner: `records` the
//! rows and their announcements, `hand_over` the way to the backend, `follower` the way back,
//! `endings` the requests to end.

mod endings;
mod follower;
mod hand_over;
mod records;

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    endings::Endings,
    follower::Follower,
    hand_over::HandOver,
    records::{Records, acceptance, has_ended},
};
use super::{
    accept::{Acceptor, RequestKey},
    commits::Sharing,
    events::Events,
};
use crate::{
    backends::{
        database::{Acceptance, Admission, Database, Ended, NewRecord, Work},
        execution_service::ExecutionService,
    },
    config::Config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        backlog::Waiting,
        executions::{Ending, Execution, ListFilter, OpenExecution, Status},
        json::Json,
        time,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// The interval at which a waiting caller polls the database while the backend cannot be asked.
const DATABASE_POLL: Duration = Duration::from_millis(500);

/// The time that a signal or query waits for its execution to start.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);

/// The time after which a signal or query that came too early may be repeated.
const START_SOON: Duration = Duration::from_secs(1);

/// A client's request to start an execution.
#[derive(Clone, Debug)]
pub struct NewExecution {
    /// The workflow's name.
    pub workflow: String,
    /// Its input.
    pub input: Json,
    /// The id, if the client chooses it.
    pub id: Option<String>,
    /// The time limit of the whole execution.
    pub timeout: Option<Duration>,
}

/// The answer to a request that starts an execution.
#[derive(Clone, Debug)]
pub enum Started {
    /// The execution was accepted now.
    New(Box<Execution>),
    /// The stored answer to an earlier request with the same key.
    Before(String),
}

/// Executions over the database and the execution service.
#[derive(Clone, Debug)]
pub struct Executions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    acceptor: Acceptor,
    service: Client<dyn ExecutionService>,
    records: Arc<Records>,
    hand_over: Arc<HandOver>,
    endings: Arc<Endings>,
    follower: Arc<Follower>,
    confirm_within: Duration,
    max_wait: Duration,
}

/// The parts of which [`Executions`] is made.
#[derive(Debug)]
pub struct Parts {
    /// Identifies this process among the replicas.
    pub owner: Arc<str>,
    /// Accepts executions.
    pub acceptor: Acceptor,
    /// Keeps the records.
    pub database: Client<dyn Database>,
    /// Runs executions.
    pub service: Client<dyn ExecutionService>,
    /// Announces changes of status.
    pub events: Events,
    /// The program's metrics.
    pub metrics: Arc<Metrics>,
    /// How changes of status share commits.
    pub sharing: Sharing,
    /// The tasks that commit them.
    pub tasks: Tasks,
}

impl Executions {
    /// Executions of the configured workflows.
    #[must_use]
    pub fn new(parts: Parts, config: &Config) -> Self {
        let records = Arc::new(Records::new(&parts, config));
        let endings = Arc::new(Endings::new(&records, &parts));
        Self(Arc::new(Shared {
            hand_over: Arc::new(HandOver::new(&records, &parts, config)),
            follower: Arc::new(Follower::new(&records, &endings, &parts, &config.executions)),
            records,
            endings,
            acceptor: parts.acceptor,
            service: parts.service,
            confirm_within: config.executions.confirm_within,
            max_wait: config.executions.max_wait,
        }))
    }

    /// Starts the tasks that start and follow executions, until `stop`. Returns the task that
    /// shutdown waits for.
    pub fn start_tasks(&self, tasks: &Tasks, stop: &CancellationToken) -> JoinHandle<()> {
        let Shared { hand_over, follower, .. } = &*self.0;
        tasks.keep("execution_follower", stop, follower, Follower::run);
        tasks.keep("execution_hand_over", stop, hand_over, HandOver::run)
    }

    /// Accepts an execution, which is started in the background.
    ///
    /// `render` writes the answer that repetitions of the request receive.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown workflow or a bad id, `AlreadyExists` for a taken id,
    /// `KeyReused` and `Conflict` by the idempotency key, `Overloaded` while too many wait,
    /// `OutcomeUnknown` when the answer to the commit was lost, or the reason why nothing was
    /// accepted.
    pub async fn start(
        &self,
        request: NewExecution,
        key: Option<RequestKey>,
        render: impl FnOnce(&Execution) -> String,
    ) -> Result<Started, Error> {
        let Shared { acceptor, records, hand_over, .. } = &*self.0;
        let execution = records.new_record(request)?;
        records.admit()?;
        hand_over.depth.admit()?;
        let (place, claim) = hand_over.place().unzip();
        let head = OpenExecution::from(&execution);
        let announcement = acceptance(&head);
        let key = key.map(|key| acceptor.key_use(key, render(&execution)));
        let record = NewRecord { execution: execution.clone(), announcement, claim };
        let work = Work::Execution(Box::new(record));
        match acceptor.accept(Admission { work, key }).await? {
            Acceptance::IdTaken => {
                let message = format!("the id {:?} is taken", execution.id);
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
            Acceptance::Answered(answer) => return Ok(Started::Before(answer)),
            _ => {}
        }
        records.changed(&head, Status::Accepted, 1);
        hand_over.accepted(&execution, place);
        Ok(Started::New(Box::new(execution)))
    }

    /// Returns an execution.
    ///
    /// # Errors
    /// `NotFound`, or an error of the database.
    pub async fn get(&self, id: &str) -> Result<Execution, Error> {
        self.0.records.get(id).await
    }

    /// True when the status may have changed since the backend was last asked.
    #[must_use]
    pub fn is_stale(&self, execution: &Execution) -> bool {
        let confirmed = execution.confirmed_at.unwrap_or(execution.created_at);
        let age = time::now().duration_since(confirmed);
        !execution.status.is_terminal() && age.unsigned_abs() > self.0.confirm_within
    }

    /// Lists executions, newest first.
    ///
    /// # Errors
    /// When the database cannot be queried.
    pub async fn list(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error> {
        self.0.records.database.executions(filter).await
    }

    /// Waits for an execution to end: up to `wait`, and no longer than the configuration allows.
    ///
    /// # Errors
    /// As [`Executions::get`].
    pub async fn wait(&self, id: &str, wait: Duration) -> Result<Execution, Error> {
        let deadline = Instant::now() + wait.min(self.0.max_wait);
        let mut changed = self.0.records.watch();
        loop {
            let execution = self.0.records.get(id).await?;
            let now = Instant::now();
            if execution.status.is_terminal() || now >= deadline {
                return Ok(execution);
            }
            let asked = async {
                if self.0.records.ask_backend(&execution, deadline - now).await.is_err() {
                    sleep(DATABASE_POLL).await;
                }
            };
            tokio::select! {
                () = asked => {}
                () = changed.of(id) => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// The executions that wait to be started.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.0.hand_over.depth.waiting()
    }

    /// Starts a dead letter again. False when there is none.
    pub(super) async fn redrive(&self, id: &str) -> Result<bool, Error> {
        let found = self.0.records.redrive(id).await?;
        if found {
            self.0.hand_over.redriven();
        }
        Ok(found)
    }

    /// Asks an execution to end.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when it has ended; or an error of the backend.
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

    /// Ends an execution at once if no backend has seen it, or else once it is known to run.
    async fn end(&self, id: &str, ending: &Ending) -> Result<Execution, Error> {
        let Shared { records, endings, .. } = &*self.0;
        let mut execution = records.steerable(id).await?;
        if execution.status == Status::Accepted {
            match endings.end_accepted(&execution, ending).await? {
                Ended::Now | Ended::Later => return records.get(id).await,
                Ended::NotAccepted => execution = records.steerable(id).await?,
            }
        }
        endings.send(id, ending).await.map_err(|error| ended_meanwhile(error, id))?;
        records.refresh(execution).await
    }

    /// Waits briefly for an execution that was just accepted to be started.
    async fn handed_over(&self, id: &str) -> Result<(), Error> {
        let deadline = Instant::now() + HAND_OVER_WAIT;
        let mut changes = self.0.records.watch();
        while self.0.records.steerable(id).await?.status == Status::Accepted {
            if self.0.hand_over.is_failing() || Instant::now() >= deadline {
                let message = format!("the execution {id:?} has not been started yet");
                return Err(Error::new(ErrorKind::Conflict, message).with_retry_after(START_SOON));
            }
            tokio::select! {
                () = changes.of(id) => {}
                () = sleep(DATABASE_POLL) => {}
            }
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// As [`Executions::cancel`]; `Conflict` while the execution has not been started;
    /// `Unsupported` when the backend has no signals.
    pub async fn signal(&self, id: &str, name: &str, input: &Json) -> Result<(), Error> {
        self.handed_over(id).await?;
        self.0.service.signal(id, name, input).await.map_err(|error| ended_meanwhile(error, id))
    }

    /// Sends a query. Ended executions answer too, where the backend supports it.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` for an unknown query, `Unsupported`, `Conflict` while the execution
    /// has not been started, or an error of the backend.
    pub async fn query(&self, id: &str, name: &str, input: &Json) -> Result<Json, Error> {
        let execution = self.0.records.get(id).await?;
        self.0.records.served_here(&execution)?;
        if !execution.status.is_terminal() {
            self.handed_over(id).await?;
        }
        self.0.service.query(id, name, input).await.map_err(Error::without_effect)
    }
}

fn ended_meanwhile(error: Error, id: &str) -> Error {
    match error.kind() {
        ErrorKind::NotFound => has_ended(id),
        _ => error,
    }
}
