//! Accepted work that was refused for good.

use async_trait::async_trait;

use super::NewEvent;
use crate::{
    error::Error,
    model::{executions::Execution, json::Json, time::Timestamp},
};

/// An event that the broker refused for good, or that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The event, unless it cannot be read.
    pub event: Option<Json>,
    /// The broker's last refusal, or the reason why the event cannot be read.
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

    /// Queues an event for delivery again. False when it does not exist.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn redrive(&self, seq: i64) -> Result<bool, Error>;

    /// Removes an event. False when it does not exist.
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

    /// Makes an execution `accepted` again, as if it had never been tried, if it was redriven this
    /// many times before. False when there is none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn redrive_execution(
        &self,
        id: &str,
        redrives: i32,
        announcement: &NewEvent,
    ) -> Result<bool, Error>;

    /// Leaves an execution failed for good. False when it does not exist.
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
