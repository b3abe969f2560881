//! Databases: they keep what was accepted.
//!
//! A [`Database`] is a few small traits of use-case size. Each method is one transaction. Times
//! that are compared between processes (claims, leases) come from the database's own clock.

mod acceptance;
mod client;
mod errors;
mod executions;
mod migrations;
#[cfg(feature = "postgres")]
mod postgres;
mod role;
mod rows;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "postgres")]
mod tls;
mod transfer;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod pool_tests;

use std::time::Duration;
#[cfg(feature = "sqlite")]
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    acceptance::{Accept, Acceptance, Admission, Claim, KeyUse, NewEvent, NewRecord, Work},
    executions::{
        ClaimedExecution, ClaimedExecutions, Ended, ExecutionQueue, ExecutionStore,
        UnreadableExecution,
    },
    role::Role,
    transfer::{Parcel, Transfer, Unfinished},
};
use async_trait::async_trait;

#[cfg(feature = "sqlite")]
use crate::{
    config::Section,
    connection::{BuildContext, Factory as _},
    error::ErrorKind,
};
use crate::{
    config::WellKnownVariable,
    connection::{Backend, Registry},
    error::Error,
    model::{
        backlog::Backlog,
        events::{Event, Position},
        executions::{Execution, Outcome, StartRequest, Workflow},
        time::Timestamp,
    },
};

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("agentarea-api needs a database: enable the feature `sqlite` or `postgres`");

/// The name of the family.
pub const FAMILY: &str = "database";

/// Keeps accepted work, idempotency keys and embedded runs.
pub trait Database:
    Backend
    + Accept
    + ExecutionStore
    + ExecutionQueue
    + RunStore
    + Outbox
    + DeadLetters
    + Roles
    + Transfer
    + Wakeups
{
    /// True when no other process can use it: whatever another one has claimed, it died holding.
    fn serves_one_process(&self) -> bool;
}

/// A run of the embedded execution service, as the database keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The execution's id.
    pub id: String,
    /// The hand-over that started it.
    pub request_id: String,
    /// Where it stands.
    pub outcome: Outcome,
}

/// A run that this process has claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedRun {
    /// The execution's id.
    pub id: String,
    /// What it does.
    pub definition: Workflow,
    /// What it was given.
    pub input: serde_json::Value,
    /// Step tries so far.
    pub tries: u32,
    /// Proves the claim: marks made with an older number are refused.
    pub fence: i64,
    /// Time that is left of its timeout.
    pub time_left: Option<Duration>,
    /// Time until the next try is due.
    pub pause: Duration,
    /// Whether its cancellation was asked for.
    pub cancel_requested: bool,
    /// The trace that it belongs to, as W3C's `traceparent`.
    pub traceparent: Option<String>,
}

/// Runs of the embedded execution service. A run is claimed by one process at a time; a claim
/// that is not renewed ends by itself.
#[async_trait]
pub trait RunStore {
    /// Stores a new run. False when the id is taken; look at the run to see by whom.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn insert_run(&self, request: &StartRequest) -> Result<bool, Error>;

    /// One run.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn run(&self, id: &str) -> Result<Option<Run>, Error>;

    /// Runs that ended at or after `since`, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn ended_runs(&self, since: Timestamp, limit: i64) -> Result<Vec<Run>, Error>;

    /// Claims runs that nobody holds, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_runs(
        &self,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<ClaimedRun>, Error>;

    /// Extends the claims of `owner` on those of `ids` that it works on; others expire. Gives the
    /// runs it still holds, and of each whether its cancellation was asked for.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn renew_runs(
        &self,
        owner: &str,
        ids: &[String],
        lease: Duration,
    ) -> Result<Vec<(String, bool)>, Error>;

    /// Stores that a step try has begun, so that tries are counted over restarts, and when the
    /// next one is due if this one fails. False when the claim is lost.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn note_try(
        &self,
        id: &str,
        fence: i64,
        tries: u32,
        pause: Duration,
    ) -> Result<bool, Error>;

    /// Ends a run. False when the claim is lost or the run has ended already.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn finish_run(&self, id: &str, fence: i64, outcome: &Outcome) -> Result<bool, Error>;

    /// Asks for the cancellation of a run. A run that nobody holds is cancelled at once. False when
    /// it is not running.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn cancel_run(&self, id: &str) -> Result<bool, Error>;

    /// Ends a run by force, whoever holds it. False when it is not running.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn terminate_run(&self, id: &str, reason: &str) -> Result<bool, Error>;

    /// Gives all claims of `owner` back.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_runs(&self, owner: &str) -> Result<(), Error>;

    /// Gives back the claims of every owner whose name does not begin with `instance`, in a database
    /// that serves one process: they died holding them. Others keep theirs until they end.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_runs_of_others(&self, instance: &str) -> Result<(), Error>;
}

/// A lane that this process has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Which one.
    pub number: i32,
    /// Proves the claim: marks made with an older number are refused.
    pub fence: i64,
}

/// An accepted event that the broker has not acknowledged yet.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The lane it belongs to.
    pub lane: i32,
    /// The event.
    pub event: Event,
}

/// An accepted event that cannot be read: it is damaged, or another version has written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The lane it belongs to.
    pub lane: i32,
    /// Why it cannot be read.
    pub reason: String,
}

/// Accepted events that wait, in the order in which they were accepted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PendingEvents {
    /// Those that can be handed over.
    pub readable: Vec<PendingEvent>,
    /// Those in between that cannot, because this program cannot read them.
    pub unreadable: Vec<UnreadableEvent>,
}

/// An accepted event that the broker has acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveredEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// Its place in the broker, which the version before this one did not store.
    pub position: Option<Position>,
    /// The event as it was delivered.
    pub json: String,
}

/// Accepted events, in lanes. A lane is claimed by one process at a time; a claim that is not
/// renewed ends by itself.
#[async_trait]
pub trait Outbox {
    /// Renews the claims of `owner`, and changes them towards its fair share of the lanes. Gives
    /// those it holds now.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_lanes(&self, owner: &str, lease: Duration) -> Result<Vec<Lane>, Error>;

    /// Gives all lanes of `owner` back.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_lanes(&self, owner: &str) -> Result<(), Error>;

    /// Events of these lanes that wait, in the order in which they were accepted: at most `limit`,
    /// with at most `max_bytes` in all unless the first alone has more.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn pending_events(
        &self,
        held: &[Lane],
        limit: i64,
        max_bytes: i64,
    ) -> Result<PendingEvents, Error>;

    /// Marks events as delivered, those in lanes that `owner` still holds, each with its place in
    /// the broker. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn mark_delivered(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error>;

    /// Delivered events before `before` in the database's sequence, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn delivered_events(
        &self,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<DeliveredEvent>, Error>;

    /// The place of the newest delivered event of each of these lanes.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn newest_places(&self, held: &[Lane]) -> Result<Vec<Position>, Error>;

    /// Delivered events of these lanes after `after` in the database's sequence, oldest first, each
    /// with its place in the broker.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn delivered_places(
        &self,
        held: &[Lane],
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Position)>, Error>;

    /// Lets delivered events in lanes that `owner` still holds be handed over again, unless they
    /// were meanwhile. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn send_again(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error>;

    /// Counts that the broker refused this very event. True when it was refused `most` times and
    /// is tried no more.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn note_refusal(
        &self,
        owner: &str,
        lane: Lane,
        seq: i64,
        error: &str,
        most: i32,
    ) -> Result<bool, Error>;

    /// What is not delivered; counts no further than one beyond `most`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn backlog(&self, most: i64) -> Result<Backlog, Error>;

    /// Removes events that were delivered so long ago, at most `limit`. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn remove_delivered(&self, older_than: Duration, limit: i64) -> Result<usize, Error>;
}

/// An event that the broker refused for good, or that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The event, unless it cannot be read.
    pub event: Option<Event>,
    /// How the broker refused it last, or why it cannot be read.
    pub error: String,
    /// How often it was refused.
    pub refusals: i32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// Accepted work that was refused for good.
#[async_trait]
pub trait DeadLetters {
    /// Events before `before` in the database's sequence, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn dead_letters(&self, before: Option<i64>, limit: i64)
    -> Result<Vec<DeadLetter>, Error>;

    /// Lets an event be handed over again. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn redrive(&self, seq: i64) -> Result<bool, Error>;

    /// Removes an event. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn discard(&self, seq: i64) -> Result<bool, Error>;

    /// Executions whose ids come after `after`, in the order of ids.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn rejected_executions(
        &self,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<RejectedExecution>, Error>;

    /// Makes an execution `accepted` again, as if it had never been tried. False when there is
    /// none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn redrive_execution(&self, id: &str) -> Result<bool, Error>;

    /// Leaves an execution failed for good. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn discard_execution(&self, id: &str) -> Result<bool, Error>;
}

/// An execution that the backend refused for good.
#[derive(Clone, Debug, PartialEq)]
pub struct RejectedExecution {
    /// Its record, which is `failed`.
    pub execution: Execution,
    /// How often it was refused.
    pub refusals: i32,
}

/// Work that one process does for all that share the database.
#[async_trait]
pub trait Roles {
    /// Takes a role, or keeps it for another `lease`. False while another process holds it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn take_role(&self, role: &str, owner: &str, lease: Duration) -> Result<bool, Error>;

    /// Gives a role back, if `owner` still has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn give_role_back(&self, role: &str, owner: &str) -> Result<(), Error>;

    /// Removes what is left of processes that were not seen for so long.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_processes(&self, silent_for: Duration) -> Result<(), Error>;
}

/// What processes that share the database tell each other, so that work does not wait until it is
/// looked for.
#[async_trait]
pub trait Wakeups {
    /// Tells the others that events wait.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wake_others(&self) -> Result<(), Error>;

    /// Waits until another tells it, or may have told it unheard. For ever in a database that
    /// serves one process. Call it on a [`Lease`](crate::connection::Lease).
    ///
    /// # Errors
    /// When the database cannot be asked any more.
    async fn woken(&self) -> Result<(), Error>;
}

/// How long connecting and migrating may take; connecting alone is bounded by
/// `pool.connect_timeout`.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);

/// What a check says of a database that no service has migrated yet.
const NO_TABLES: &str = "the tables are not there yet; the service makes them when it starts";

/// `DATABASE_URL` selects the backend by its scheme.
const POSTGRES_VARIABLES: [WellKnownVariable; 1] = [WellKnownVariable {
    name: "DATABASE_URL",
    key: "url",
    selects: true,
    read: |url| {
        let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        is_postgres.then(|| url.to_owned())
    },
}];
const SQLITE_VARIABLES: [WellKnownVariable; 1] = [WellKnownVariable {
    name: "DATABASE_URL",
    key: "path",
    selects: true,
    read: |url| {
        let path = url.strip_prefix("sqlite:")?;
        Some(path.strip_prefix("//").unwrap_or(path).to_owned())
    },
}];

/// The default file of the embedded database, if it holds work that is not done. Beside a service
/// that uses another database it is easily forgotten.
#[cfg(feature = "sqlite")]
pub async fn left_behind() -> Option<(PathBuf, Unfinished)> {
    let path = sqlite::default_path();
    let left = sqlite::unfinished_in(&path).await.ok()?;
    (left != Unfinished::default()).then_some((path, left))
}

/// Opens the file of an embedded database. No service may use it meanwhile.
///
/// # Errors
/// When there is none, another process uses it, or it is no database of this program.
#[cfg(feature = "sqlite")]
pub async fn open_file(path: &Path, context: &BuildContext) -> Result<Arc<dyn Database>, Error> {
    if !path.exists() {
        let message = format!("there is no file {}", path.display());
        let remedy = "correct the path, which is relative to the working directory";
        return Err(Error::new(ErrorKind::Missing, message).with_remedy(remedy));
    }
    let section = Section(serde_json::json!({ "path": path }));
    sqlite::Factory::default().build(&section, context).await
}

/// The databases of this build.
#[must_use]
pub fn registry() -> Registry<dyn Database> {
    let registry = Registry::new(FAMILY);
    #[cfg(feature = "sqlite")]
    let registry = registry.register(sqlite::Factory::default());
    #[cfg(not(feature = "sqlite"))]
    let registry = registry.compiled_out(super::compiled_out(FAMILY, "sqlite", &SQLITE_VARIABLES));
    #[cfg(feature = "postgres")]
    let registry = registry.register(postgres::Factory);
    #[cfg(not(feature = "postgres"))]
    let registry =
        registry.compiled_out(super::compiled_out(FAMILY, "postgres", &POSTGRES_VARIABLES));
    registry
}

/// A database for tests, in use as the program uses it.
#[cfg(test)]
pub(crate) fn managed(
    backend: &str,
    table: serde_json::Value,
    pool: crate::config::Pool,
    metrics: &crate::telemetry::metrics::Metrics,
    tasks: &crate::tasks::Tasks,
) -> crate::connection::Managed<dyn Database> {
    use crate::{
        config::Connection,
        connection::{Managed, Settings},
    };

    let database =
        Managed::new(registry(), "test".into(), metrics.connection(FAMILY), tasks.clone());
    database.start(Settings {
        backend: backend.to_owned(),
        section: Section(table),
        pool,
        ..Settings::from(&Connection::database())
    });
    database
}
