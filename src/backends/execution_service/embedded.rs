//! The execution service inside this program: runs are rows of the database, claimed with a lease
//! and a fencing number, so that runs of a dead process continue in another process or after a
//! restart.

mod runner;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::runner::Runner;
use super::{Description, ExecutionService, FAMILY, Page, PageToken, Started, step::Steps};
use crate::{
    backends::database::{Database, Run},
    config::{BackendConfig, BackendDescriptor, IN_THIS_PROCESS, Section, Table, values::duration},
    connection::{Backend, BuildContext, Client, Factory as BackendFactory, Managed},
    error::{Error, ErrorKind},
    model::{
        executions::{ListedEnd, StartRequest, Workflow},
        json::Json,
        time::Timestamp,
    },
};

/// Runs that one page of a list shows.
const PAGE: i64 = if cfg!(test) { 8 } else { 1000 };

/// How often a waiting caller polls, because another process may have ended the run.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The execution service inside this program, durable in the database.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// The most runs that one instance executes at the same time; further runs wait.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) max_concurrent: usize,
    /// How long a claim on a run lasts; it is renewed every third of this time. After this time
    /// another instance takes over the runs of a dead instance.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "1h"))]
    pub(super) lease: Duration,
    /// How often this instance looks for unclaimed runs. Runs that it starts itself begin at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "50ms", "x-maximum" = "1h"))]
    pub(super) poll_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_concurrent: 256,
            lease: Duration::from_secs(15),
            poll_interval: Duration::from_secs(1),
        }
    }
}

impl BackendConfig for Config {
    fn address(&self) -> String {
        IN_THIS_PROCESS.to_owned()
    }
}

pub(super) struct Factory {
    database: Managed<dyn Database>,
    built: AtomicU64,
}

impl Factory {
    pub(super) fn new(database: Managed<dyn Database>) -> Self {
        Self { database, built: AtomicU64::new(0) }
    }
}

#[async_trait]
impl BackendFactory<dyn ExecutionService> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "embedded",
            variables: &[],
            // Claims allow several processes, but the steps run inside the API's process, while
            // production runs them on separate workers.
            shared: false,
            example: "",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn ExecutionService>, Error> {
        let config: Config = section.read()?;
        let steps = Steps::new().map_err(|error| {
            Error::new(ErrorKind::Internal, "the HTTP client cannot be set up").with_source(error)
        })?;
        let number = self.built.fetch_add(1, Ordering::Relaxed);
        let board = Arc::new(Board::default());
        let closing = &context.closing;
        let runner = Arc::new(Runner {
            database: self.database.client(),
            config: config.clone(),
            steps,
            board: Arc::clone(&board),
            instance: Arc::clone(&context.instance),
            owner: format!("{}/{number}", context.instance),
            closing: closing.clone(),
            runs: TaskTracker::new(),
        });
        context.tasks.keep_until("embedded_renewal", closing, &runner, Runner::renew_claims);
        let ended = context.tasks.keep("embedded_runner", closing, &runner, Runner::claim_runs);
        Ok(Arc::new(EmbeddedService {
            // A call of the service is retried as a whole.
            database: self.database.client().unretried(),
            board,
            config,
            closing: closing.clone(),
            ended: Mutex::new(Some(ended)),
        }))
    }

    /// All its state is in the database. The runner is not started, because it would claim runs.
    async fn check(
        &self,
        section: &Section,
        _context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        section.read::<Config>()?;
        let unusable = |error: Error| {
            let message = "its runs are stored in the database, which cannot be used";
            Error::new(error.kind(), message).with_source(error)
        };
        self.database.check().await.result.map(|_note| None).map_err(unusable)
    }
}

/// The state that service and runner share.
#[derive(Debug)]
pub(super) struct Board {
    /// Notified when there is a run to claim.
    pub(super) work: Notify,
    /// Counts ended runs, for callers that wait for one.
    pub(super) ended_runs: watch::Sender<u64>,
    /// Runs that this process executes.
    pub(super) active: Mutex<HashMap<String, ActiveRun>>,
    /// The time of the runner's last cycle.
    pub(super) heartbeat: Mutex<Instant>,
    /// True when the runner's claims have worked at least once.
    pub(super) claimed: AtomicBool,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            work: Notify::new(),
            ended_runs: watch::Sender::new(0),
            active: Mutex::default(),
            heartbeat: Mutex::new(Instant::now()),
            claimed: AtomicBool::new(false),
        }
    }
}

impl Board {
    pub(super) fn run_ended(&self) {
        self.ended_runs.send_modify(|count| *count += 1);
    }
}

/// The handle of a run that this process executes.
#[derive(Clone, Debug, Default)]
pub(super) struct ActiveRun {
    /// The fencing number of the claim.
    pub(super) fence: i64,
    /// Its cancellation was requested.
    pub(super) cancel: CancellationToken,
    /// The claim was lost, so this process must stop executing it.
    pub(super) lost: CancellationToken,
}

#[derive(Debug)]
struct EmbeddedService {
    database: Client<dyn Database>,
    board: Arc<Board>,
    config: Config,
    closing: CancellationToken,
    /// The runner, which ends after `closing`.
    ended: Mutex<Option<JoinHandle<()>>>,
}

impl EmbeddedService {
    async fn look(&self, id: &str) -> Result<Run, Error> {
        let run = self.database.run(id).await?;
        run.ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("no running execution has the id {id:?}"))
}

fn description(run: Run) -> Description {
    // The clock is the one of the database.
    Description { id: run.id, outcome: run.outcome, ran_for: None }
}

fn is_full(items: usize) -> bool {
    i64::try_from(items).is_ok_and(|items| items >= PAGE)
}

/// The place after a run in the list of those that ended.
fn place(ended_at: Timestamp, id: &str) -> PageToken {
    PageToken(format!("{} {id}", ended_at.as_microsecond()).into_bytes())
}

fn read_place(token: &PageToken) -> Result<(Timestamp, String), Error> {
    let text = String::from_utf8_lossy(&token.0);
    let place = text.split_once(' ').and_then(|(at, id)| {
        let at = Timestamp::from_microsecond(at.parse().ok()?).ok()?;
        Some((at, id.to_owned()))
    });
    place.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "it is no place in the list"))
}

#[async_trait]
impl Backend for EmbeddedService {
    /// The service works when the database works and the runner is alive.
    async fn probe(&self) -> Result<(), Error> {
        // Not a guarded call, because the result of a probe must not count for the breaker of the
        // database.
        self.database.lease().await?.probe().await?;
        let silent = self.board.heartbeat.lock().elapsed();
        if silent > self.config.poll_interval * 3 + self.config.lease {
            return Err(Error::new(ErrorKind::Internal, "the runner has stopped responding"));
        }
        Ok(())
    }

    async fn close(&self) {
        self.closing.cancel();
        let ended = self.ended.lock().take();
        if let Some(ended) = ended {
            let _stopped = ended.await.is_ok();
        }
    }
}

#[async_trait]
impl ExecutionService for EmbeddedService {
    async fn start(&self, request: &StartRequest) -> Result<Started, Error> {
        if matches!(request.definition, Workflow::Temporal { .. }) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "workflow {:?} runs on Temporal only; set TEMPORAL_ADDRESS",
                    request.workflow
                ),
            ));
        }
        let new = self.database.insert_run(request).await?;
        if !new && self.look(&request.id).await?.request_id != request.request_id {
            return Err(Error::new(ErrorKind::AlreadyExists, "the id is taken"));
        }
        self.board.work.notify_one();
        Ok(Started::Started)
    }

    async fn describe(&self, id: &str) -> Result<Description, Error> {
        self.look(id).await.map(description)
    }

    async fn ended_since(
        &self,
        since: Timestamp,
        page: Option<&PageToken>,
    ) -> Result<Page<ListedEnd>, Error> {
        let after = page.map(read_place).transpose()?;
        let after = after.as_ref().map(|(at, id)| (*at, id.as_str()));
        let items = self.database.ended_runs(since, after, PAGE).await?;
        let last = items.last().map(|end| place(end.ended_at, &end.id));
        Ok(Page { next: last.filter(|_| is_full(items.len())), items })
    }

    async fn running(&self, page: Option<&PageToken>) -> Result<Page<String>, Error> {
        let after = page.map(|token| String::from_utf8_lossy(&token.0).into_owned());
        let items = self.database.running_runs(after.as_deref(), PAGE).await?;
        let last = items.last().map(|id| PageToken(id.as_bytes().to_vec()));
        Ok(Page { next: last.filter(|_| is_full(items.len())), items })
    }

    async fn outcomes(&self, ended: &[ListedEnd]) -> Result<Vec<Description>, Error> {
        let ids: Vec<String> = ended.iter().map(|end| end.id.clone()).collect();
        let ids = &ids;
        let runs = self.database.runs(ids).await?;
        Ok(runs.into_iter().map(description).collect())
    }

    async fn until_ended(&self, id: &str, wait: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + wait;
        let mut ended = self.board.ended_runs.subscribe();
        loop {
            // Marked as seen before polling, so that an end in between is not missed.
            ended.mark_unchanged();
            let run = self.look(id).await?;
            let now = Instant::now();
            if run.outcome.status.is_terminal() || now >= deadline {
                return Ok(());
            }
            let until = deadline.min(now + LOOK_AGAIN);
            let _told = timeout_at(until, ended.changed()).await.is_ok();
        }
    }

    async fn signal(&self, _id: &str, _name: &str, _input: &Json) -> Result<(), Error> {
        Err(unsupported("signals"))
    }

    async fn query(&self, _id: &str, _name: &str, _input: &Json) -> Result<Json, Error> {
        Err(unsupported("queries"))
    }

    async fn cancel(&self, id: &str) -> Result<(), Error> {
        let found = self.database.cancel_run(id).await?;
        if !found {
            return Err(unknown(id));
        }
        if let Some(run) = self.board.active.lock().get(id) {
            run.cancel.cancel();
        }
        self.board.run_ended();
        Ok(())
    }

    async fn terminate(&self, id: &str, reason: &str) -> Result<(), Error> {
        let found = self.database.terminate_run(id, reason).await?;
        if !found {
            return Err(unknown(id));
        }
        if let Some(run) = self.board.active.lock().get(id) {
            run.lost.cancel();
        }
        self.board.run_ended();
        Ok(())
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the embedded execution service has no {what}; use Temporal"),
    )
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{
        backends::{
            database,
            execution_service::{self, contract},
        },
        config,
        connection::Settings,
        tasks::Tasks,
        telemetry::metrics::Metrics,
    };

    fn service_on(
        database: &Managed<dyn Database>,
        tasks: &Tasks,
    ) -> Managed<dyn ExecutionService> {
        let metrics = Metrics::new("0", "0").connection(FAMILY);
        let registry = execution_service::registry(database.clone());
        let slot = Managed::new(registry, "test".into(), metrics, tasks.clone());
        let mut config = config::Connection::execution_service();
        config.backend = "embedded".to_owned();
        slot.start(Settings::from(&config));
        slot
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test(flavor = "multi_thread")]
    async fn the_embedded_service_fulfils_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = Tasks::default();
        let table = serde_json::json!({"path": folder.path().join("embedded.db")});
        let metrics = Metrics::new("0", "0");
        let database =
            database::managed("sqlite", table, config::Pool::default(), &metrics, &tasks);
        let service = service_on(&database, &tasks);
        let lease = service.client().lease().await.unwrap();
        contract::suite(Arc::clone(&lease)).await;
        drop(lease);
        service.close().await;
        database.close().await;
    }
}
