//! Runs of the embedded execution service.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{
        executions::{ListedEnd, Outcome, StartRequest, Workflow},
        json::Json,
        time::Timestamp,
    },
};

/// A run of the embedded execution service, as the database stores it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The execution's id.
    pub id: String,
    /// The start request that created it.
    pub request_id: String,
    /// Its status and outcome.
    pub outcome: Outcome,
}

/// A run that this process has claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedRun {
    /// The execution's id.
    pub id: String,
    /// The step to run.
    pub definition: Workflow,
    /// The input.
    pub input: Json,
    /// Step attempts so far.
    pub tries: u32,
    /// The fencing number: changes with an older number are refused.
    pub fence: i64,
    /// Time left until its timeout.
    pub time_left: Option<Duration>,
    /// Time until the next attempt is due.
    pub pause: Duration,
    /// Whether its cancellation was requested.
    pub cancel_requested: bool,
    /// Its trace, as a W3C `traceparent`.
    pub traceparent: Option<String>,
}

/// Runs of the embedded execution service. A run is claimed by one process at a time; a claim that
/// is not renewed expires.
#[async_trait]
pub trait RunStore {
    /// Stores a new run. False when the id is taken; the stored run shows by which request.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn insert_run(&self, request: &StartRequest) -> Result<bool, Error>;

    /// One run.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn run(&self, id: &str) -> Result<Option<Run>, Error>;

    /// Runs of these ids.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn runs(&self, ids: &[String]) -> Result<Vec<Run>, Error>;

    /// Runs that ended at or after `since`, oldest first and then by id, behind the one that ended
    /// at a time with an id.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn ended_runs(
        &self,
        since: Timestamp,
        after: Option<(Timestamp, &str)>,
        limit: i64,
    ) -> Result<Vec<ListedEnd>, Error>;

    /// The ids of running runs behind `after`, in order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn running_runs(&self, after: Option<&str>, limit: i64) -> Result<Vec<String>, Error>;

    /// Claims unclaimed runs, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_runs(
        &self,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<ClaimedRun>, Error>;

    /// Renews the claims of `owner` on `ids`; its other claims expire. Returns the runs it still
    /// holds, each with whether its cancellation was requested.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn renew_runs(
        &self,
        owner: &str,
        ids: &[String],
        lease: Duration,
    ) -> Result<Vec<(String, bool)>, Error>;

    /// Records that a step attempt has begun, so that attempts are counted across restarts, and
    /// when the next attempt is due if this one fails. False when the claim is lost.
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

    /// Requests the cancellation of a run. An unclaimed run is cancelled at once. False when it is
    /// not running.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn cancel_run(&self, id: &str) -> Result<bool, Error>;

    /// Ends a run by force, whoever holds it. False when it is not running.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn terminate_run(&self, id: &str, reason: &str) -> Result<bool, Error>;

    /// Releases all claims of `owner`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_runs(&self, owner: &str) -> Result<(), Error>;

    /// Releases the claims of every owner whose name does not begin with `instance`, in a database
    /// that serves one process, where those owners must have died. In other databases the claims
    /// last until they expire.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_runs_of_others(&self, instance: &str) -> Result<(), Error>;
}
