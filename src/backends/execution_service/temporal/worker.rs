//! Runs the workflows of kind `echo` and `http` on Temporal.
//!
//! There is one workflow type for all of them. It schedules one activity, which looks the workflow
//! up by name in this worker's configuration and runs its step; its timeout and retry policy come
//! with the execution, so that a replay makes the same decisions as the first run.

use std::{
    collections::BTreeMap, convert::Infallible, pin::pin, sync::Arc, thread, time::Duration,
};

use temporalio_client::{Client, ClientOptions, Connection, RetryOptions, RetryPolicy};
use temporalio_common::error::ApplicationFailure;
use temporalio_macros::{activities, workflow, workflow_methods};
use temporalio_sdk::{
    ActivityExecutionError, ActivityOptions, Runtime, Worker, WorkerOptions, WorkflowContext,
    WorkflowResult, WorkflowTermination,
    activities::{ActivityContext, ActivityError},
    runtime::RuntimeOptions,
};
use tokio::{
    sync::oneshot,
    time::{Instant, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::step::{StepError, Steps},
    ApiKey, Argument, Config, Key, Limits, connect, describe_namespace,
    text::Text,
};
use crate::{
    backends::login::Login,
    config::{self, Section},
    error::{Error, ErrorKind},
    model::{
        backoff::{Backoff, jittered},
        executions::{StepRetry, Workflow},
        json::Json,
    },
};

/// How often a running step checks whether its execution was cancelled.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A worker that is silent for this long is considered dead, and its steps are retried on other
/// workers. Long enough for a restart of the server.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the result of a step waits for an outage to end. After [`HEARTBEAT_TIMEOUT`] the server
/// gives the step to another worker.
const REPORT_FOR: Duration = HEARTBEAT_TIMEOUT;

/// Pauses before the worker is rebuilt.
const RESTART: Backoff = Backoff::doubling(Duration::from_secs(1), Duration::from_secs(30));

/// How much of the grace period remains for reporting once the steps have ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The interval between checks that the server can be reached.
const WATCH: Duration = Duration::from_secs(5);

/// The settings of a worker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The table of the backend `temporal`.
    pub section: Section,
    /// Identifies this process among the workers.
    pub instance: Arc<str>,
    /// The connect timeout and the keep-alive of the connection.
    pub pool: config::Pool,
    /// How long stopping may take. Steps still running shortly before that, which leaves time to
    /// report them, are released, and another worker retries them.
    pub grace: Duration,
}

/// Runs `workflows`, by name, until `soft` is cancelled.
///
/// It survives outages of the server of any length. Once `soft` is cancelled it takes no more work,
/// and returns when its steps have ended, after `grace` at the latest.
///
/// # Errors
/// When the worker cannot be set up.
///
/// # Cancel safety
/// Dropping the future stops the worker in the background, as if `soft` were cancelled.
pub async fn run(
    settings: Settings,
    workflows: BTreeMap<String, Workflow>,
    soft: CancellationToken,
) -> Result<(), Error> {
    let config: Config = settings.section.read()?;
    let steps = Steps::new().map_err(|error| setup("the HTTP client", error))?;
    let stop = soft.child_token();
    let _dropped = stop.clone().drop_guard();
    let supervisor = Supervisor {
        login: config.login()?,
        config,
        settings,
        activities: Activities { steps, workflows: Arc::new(workflows) },
        stop,
    };
    let (sender, ended) = oneshot::channel();
    // On a thread of its own, because the worker's futures cannot move between threads, and
    // workflow code must not wait for other tasks.
    let body = move || {
        // The receiver is gone if `run` was dropped.
        let _unheard = sender.send(supervisor.run());
    };
    let spawned = thread::Builder::new().name("temporal-worker".to_owned()).spawn(body);
    spawned.map_err(|error| setup("a thread", error))?;
    ended.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the worker panicked")))
}

fn setup(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, format!("{what} cannot be set up")).with_source(error)
}

/// Rebuilds the worker whenever it ends by itself.
struct Supervisor {
    config: Config,
    login: Login<ApiKey>,
    settings: Settings,
    activities: Activities,
    stop: CancellationToken,
}

impl Supervisor {
    fn run(self) -> Result<(), Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| setup("a runtime", error))?;
        runtime.block_on(self.supervise())
    }

    async fn supervise(&self) -> Result<(), Error> {
        let runtime = Runtime::from_current_tokio(RuntimeOptions::default())
            .map_err(|error| setup("the worker's runtime", error))?;
        let (mut failures, mut known) = (0, None);
        while let Some(connected) = self.stop.run_until_cancelled(self.connect()).await {
            let begin = Instant::now();
            let ended = match connected {
                Ok(connection) => self.poll(&runtime, connection).await,
                Err(error) => Err(error),
            };
            if begin.elapsed() > RESTART.max {
                (failures, known) = (0, None);
            }
            if let Err(error) = ended {
                // An outage is logged when it begins or its cause changes, not at each retry.
                if known.replace(error.kind()) != Some(error.kind()) {
                    tracing::warn!(
                        error = %error, error.class = error.kind().as_str(),
                        "the worker is down and will be rebuilt"
                    );
                }
            }
            failures += 1;
            let pause = jittered(RESTART.pause_after(failures), 0.5, rand::random());
            self.stop.run_until_cancelled(sleep(pause)).await;
        }
        tracing::info!("the worker has stopped");
        Ok(())
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let retries = RetryOptions::builder()
            .max_elapsed_time(Some(REPORT_FOR))
            .max_retries(usize::MAX)
            .build();
        let Settings { instance, pool, .. } = &self.settings;
        connect(&self.config, &self.login, instance, &Limits::of(pool), retries).await
    }

    /// Works until the worker is stopped, or ends by itself.
    async fn poll(&self, runtime: &Runtime, connection: Connection) -> Result<(), Error> {
        let mut worker = self.worker(runtime, connection.clone())?;
        let shutdown = worker.shutdown_handle();
        let task_queue = &self.config.task_queue;
        tracing::info!(task_queue, "the worker polls {task_queue:?}");
        let mut running = pin!(worker.run());
        tokio::select! {
            ended = &mut running => {
                return ended.map_err(|error| {
                    Error::new(ErrorKind::Unavailable, "the worker ended").with_source(error)
                });
            }
            never = self.watch(&connection) => match never {},
            () = self.stop.cancelled() => shutdown(),
        }
        if !matches!(timeout(self.settings.grace, running).await, Ok(Ok(()))) {
            tracing::warn!("the worker did not stop in time; other workers retry its steps");
        }
        Ok(())
    }

    fn worker(&self, runtime: &Runtime, connection: Connection) -> Result<Worker, Error> {
        let grace = self.settings.grace;
        let options = ClientOptions::new(&self.config.namespace).build();
        let client = Client::new(connection, options).map_err(|error| setup("a client", error))?;
        let options = WorkerOptions::new(&self.config.task_queue)
            .register_workflow::<AgentAreaWorkflow>()
            .map_err(|error| setup("the workflow", error))?
            .register_activities(self.activities.clone())
            .max_heartbeat_throttle_interval(HEARTBEAT)
            .graceful_shutdown_period(grace.saturating_sub(LAST_WORDS).max(grace / 2))
            .build();
        Worker::new(runtime, client, options).map_err(|error| setup("the worker", error))
    }

    /// Logs once when the server is lost and once when it is back. The SDK keeps polling meanwhile
    /// and, unless it is filtered out, logs every attempt.
    async fn watch(&self, connection: &Connection) -> Infallible {
        let mut reached = true;
        loop {
            sleep(WATCH).await;
            let namespace = &self.config.namespace;
            let ask = async |key: Arc<Key>| describe_namespace(connection, &key, namespace).await;
            let asked = self.login.connect(ask).await;
            // The SDK's own calls use the key of the connection, which may have been renewed.
            connection.set_api_key(self.login.current().value());
            match asked {
                Ok(_) if !reached => tracing::info!("the worker has reached Temporal again"),
                Err(error) if reached => tracing::warn!(
                    error = %error, error.class = error.kind().as_str(),
                    "the worker has lost Temporal and keeps polling"
                ),
                _ => continue,
            }
            reached = !reached;
        }
    }
}

/// The state that the steps of all executions share.
#[derive(Clone)]
struct Activities {
    steps: Steps,
    workflows: Arc<BTreeMap<String, Workflow>>,
}

#[activities]
impl Activities {
    #[activity(name = "run_step")]
    async fn run_step(
        self: Arc<Self>,
        context: ActivityContext,
        Text(argument): Text<Argument>,
    ) -> Result<Text<Json>, ActivityError> {
        let Argument { workflow, execution, input, traceparent, .. } = &argument;
        let Some(definition) = self.workflows.get(workflow) else {
            return Err(permanent(format!(
                "this worker's configuration has no workflow {workflow:?}"
            )));
        };
        let mut step = pin!(self.steps.run(execution, traceparent.as_deref(), definition, input));
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            tokio::select! {
                biased;
                result = &mut step => return result.map(Text).map_err(failure),
                // Reported by the server in answer to a heartbeat, or by the worker when it must
                // stop.
                () = context.cancelled() => return Err(ActivityError::cancelled()),
                _ = heartbeat.tick() => context.record_heartbeat(()).await?,
            }
        }
    }
}

fn failure(error: StepError) -> ActivityError {
    if error.retryable {
        ActivityError::application(ApplicationFailure::new(error.message))
    } else {
        permanent(error.message)
    }
}

fn permanent(message: String) -> ActivityError {
    ActivityError::application(ApplicationFailure::non_retryable(message))
}

/// The workflow type of all executions that this program runs itself.
#[workflow]
#[derive(Default)]
struct AgentAreaWorkflow;

#[workflow_methods]
impl AgentAreaWorkflow {
    #[run]
    async fn run(
        context: &mut WorkflowContext<Self>,
        argument: Text<Argument>,
    ) -> WorkflowResult<Text<Json>> {
        let options = ActivityOptions::with_start_to_close_timeout(argument.0.timeout)
            .heartbeat_timeout(HEARTBEAT_TIMEOUT)
            .retry_policy(retry_policy(argument.0.retry))
            .build();
        match context.execute_activity(Activities::run_step, argument, options).await {
            Ok(result) => Ok(result),
            Err(ActivityExecutionError::Cancelled(_)) => Err(WorkflowTermination::cancelled()),
            Err(error) => Err(error.into()),
        }
    }
}

fn retry_policy(retry: Option<StepRetry>) -> RetryPolicy {
    let Some(retry) = retry else {
        return RetryPolicy::default();
    };
    RetryPolicy::builder()
        .initial_interval(retry.initial_backoff)
        .maximum_interval(retry.max_backoff)
        .backoff_coefficient(retry.multiplier)
        .maximum_attempts(retry.max_attempts)
        .build()
}
