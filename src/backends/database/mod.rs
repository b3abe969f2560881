//! Databases: they keep what was accepted.
//!
//! A [`Database`] is a few small traits of use-case size. Each method is one transaction. Times
//! that are compared between processes (claims, leases) come from the database's own clock.

mod errors;
#[cfg(feature = "postgres")]
mod postgres;
mod rows;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "postgres")]
mod tls;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod pool_tests;

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    config::WellKnownVariable,
    connection::{Backend, Registry},
    error::Error,
    model::{
        events::Event,
        executions::{Execution, ListFilter, Outcome, StartRequest, Workflow},
        time::Timestamp,
    },
};

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("agentarea-api needs a database: enable the feature `sqlite` or `postgres`");

/// The name of the family.
pub const FAMILY: &str = "database";

/// Keeps accepted work, idempotency keys and embedded runs.
pub trait Database: Backend + ExecutionStore + RunStore + Outbox + DeadLetters {
    /// True when no other process can use it: whatever another one has claimed, it died holding.
    fn serves_one_process(&self) -> bool;
}

/// The use of an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Principal, method and route; keys of different scopes do not meet.
    pub scope: String,
    /// The key.
    pub key: String,
    /// Hash of the request body.
    pub body_hash: String,
    /// How long the first request may take; after that it no longer counts as unanswered.
    pub busy_for: Duration,
    /// How long the answer is kept.
    pub keep_for: Duration,
}

/// What became of an execution that was to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum Acceptance {
    /// It is stored.
    Stored,
    /// Its id is taken.
    IdTaken,
    /// The key was used for the same request: this was the answer.
    Answered(String),
    /// The key was used for the same request, which is not answered yet.
    Busy,
    /// The key was used for the same request, which ended without an answer; this is what it
    /// stored.
    Unanswered(Box<Execution>),
    /// The key was used for another request.
    KeyReused,
}

/// Executions and the idempotency keys they were accepted with.
#[async_trait]
pub trait ExecutionStore {
    /// Stores an execution together with its idempotency key.
    ///
    /// # Errors
    /// `outcome_unknown()` when the answer to the commit was lost.
    ///
    /// # Cancel safety
    /// A dropped call may have stored both; it never stores one of them.
    async fn accept(
        &self,
        execution: &Execution,
        key: Option<&KeyUse>,
    ) -> Result<Acceptance, Error>;

    /// Keeps the answer for repetitions of the request.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn answer(&self, key: &KeyUse, answer: &str) -> Result<(), Error>;

    /// Removes an execution that no backend has, and its key, so that the request can be repeated.
    /// False when it is not `accepted` any more, and stays.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn withdraw(&self, id: &str, key: Option<&KeyUse>) -> Result<bool, Error>;

    /// One execution.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn execution(&self, id: &str) -> Result<Option<Execution>, Error>;

    /// Executions, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn executions(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error>;

    /// Changes the status, if the change leads forward: a final status never changes, and
    /// `running` follows `accepted` only. True when this call changed it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn change(&self, id: &str, outcome: &Outcome) -> Result<bool, Error>;

    /// Remembers that the backend has confirmed the status of these executions.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn confirm(&self, ids: &[String]) -> Result<(), Error>;

    /// Running executions of `backend`, the longest unconfirmed first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn unconfirmed(&self, backend: &str, limit: i64) -> Result<Vec<Execution>, Error>;

    /// Those of `ids` that have not ended.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn open_among(&self, ids: &[String]) -> Result<Vec<Execution>, Error>;

    /// Executions for `backend` that have been `accepted` for longer than `older_than`, oldest
    /// first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn not_handed_over(
        &self,
        backend: &str,
        older_than: Duration,
        limit: i64,
    ) -> Result<Vec<Execution>, Error>;

    /// Removes idempotency keys that are kept no longer. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_keys(&self) -> Result<usize, Error>;
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

    /// Gives back the claims of every owner whose name does not begin with `instance`. Only for a
    /// database that serves one process.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_runs_of_others(&self, instance: &str) -> Result<(), Error>;
}

/// An event to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// The event as it will be delivered.
    pub event: Event,
    /// Hash of the event as the client sent it, by which a repetition is recognised.
    pub content_hash: String,
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

/// Accepted events that are not delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Those that wait.
    pub rows: i64,
    /// How long the first of them has waited.
    pub oldest: Option<Duration>,
    /// Those that the broker refused for good.
    pub dead: i64,
}

/// Accepted events, in lanes. A lane is claimed by one process at a time; a claim that is not
/// renewed ends by itself.
#[async_trait]
pub trait Outbox {
    /// Stores all events or none. An event that is stored already, with the same content, stays as
    /// it is. Gives the places of those whose source and id another event has; then none is stored.
    ///
    /// # Errors
    /// `outcome_unknown()` when the answer to the commit was lost.
    ///
    /// # Cancel safety
    /// A dropped call may have stored all; it never stores a part.
    async fn store_events(&self, events: &[NewEvent]) -> Result<Vec<usize>, Error>;

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

    /// Events of these lanes that wait, in the order in which they were accepted.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn pending_events(&self, held: &[Lane], limit: i64) -> Result<Vec<PendingEvent>, Error>;

    /// Marks events as delivered, those in lanes that `owner` still holds. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn mark_delivered(
        &self,
        owner: &str,
        held: &[Lane],
        seqs: &[i64],
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

/// An event that the broker refused for good.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The event.
    pub event: Event,
    /// How the broker refused it last.
    pub error: String,
    /// How often it was refused.
    pub refusals: i32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// Events that the broker refused for good.
#[async_trait]
pub trait DeadLetters {
    /// Those before `before` in the database's sequence, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn dead_letters(&self, before: Option<i64>, limit: i64)
    -> Result<Vec<DeadLetter>, Error>;

    /// Lets one be handed over again. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn redrive(&self, seq: i64) -> Result<bool, Error>;

    /// Removes one. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn discard(&self, seq: i64) -> Result<bool, Error>;
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
