//! The records of executions.

use std::time::Duration;

use async_trait::async_trait;

use super::NewEvent;
use crate::{
    error::Error,
    model::executions::{Execution, ListFilter, OpenExecution, Outcome},
};

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

    /// Changes the status, if the change leads forward: a final status never changes, and
    /// `running` follows `accepted` only. `announcements` are stored with the change. True when
    /// this call changed it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn change(
        &self,
        id: &str,
        outcome: &Outcome,
        announcements: &[NewEvent],
    ) -> Result<bool, Error>;

    /// Records that the backend has confirmed the status of these executions.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn confirm(&self, ids: &[String]) -> Result<(), Error>;

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
