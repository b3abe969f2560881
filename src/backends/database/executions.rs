//! The records of executions.

use std::time::Duration;

use async_trait::async_trait;

use super::NewEvent;
use crate::{
    error::Error,
    model::executions::{Execution, ListFilter, OpenExecution, Outcome},
};

/// A change of an execution's status.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusChange {
    /// The execution.
    pub id: String,
    /// The new status. A start time that was stored earlier stands, and no end comes before it.
    pub outcome: Outcome,
    /// The events that announce it, stored with it.
    pub announcements: Vec<NewEvent>,
}

/// The records of executions.
#[async_trait]
pub trait ExecutionStore {
    /// One execution. Parts that cannot be read are `null`, and `error` says why.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn execution(&self, id: &str) -> Result<Option<Execution>, Error>;

    /// Executions, newest first, each as [`execution`](Self::execution) returns it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn executions(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error>;

    /// Makes changes of different executions in one transaction, each if it leads forward: a final
    /// status never changes, and `running` follows `accepted` only. For each, true when this call
    /// made it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn change(&self, changes: &[&StatusChange]) -> Result<Vec<bool>, Error>;

    /// Records that the backend has confirmed those of these executions that are running. Returns
    /// their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn confirm(&self, ids: &[String]) -> Result<usize, Error>;

    /// Running executions of `backend`, the longest unconfirmed ones first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn unconfirmed(&self, backend: &str, limit: i64) -> Result<Vec<OpenExecution>, Error>;

    /// The subset of `ids` that has not ended.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn open_among(&self, ids: &[String]) -> Result<Vec<OpenExecution>, Error>;

    /// Removes executions that ended at least this long ago, with their runs, at most `limit`; dead
    /// letters stay. Returns their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn remove_ended(&self, older_than: Duration, limit: i64) -> Result<usize, Error>;
}
