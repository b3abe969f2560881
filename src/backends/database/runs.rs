//! Runs of the embedded execution service.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{
        executions::{Outcome, StartRequest, Workflow},
        time::Timestamp,
    },
};

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
