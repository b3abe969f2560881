//! The queue in which accepted executions wait for their start.

use std::time::Duration;

use async_trait::async_trait;

use super::NewEvent;
use crate::{
    error::Error,
    model::executions::{Ending, Execution, OpenExecution, Outcome},
};

/// An accepted execution that this process has claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedExecution {
    /// The record.
    pub execution: Execution,
    /// The fencing number: changes with an older number are refused.
    pub fence: i64,
    /// The time since the first attempt that may have reached the backend.
    pub first_tried: Option<Duration>,
}

/// Accepted executions that this process has claimed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimedExecutions {
    /// The readable executions.
    pub readable: Vec<ClaimedExecution>,
    /// The executions that this program cannot read.
    pub unreadable: Vec<UnreadableExecution>,
}

/// A claimed execution that cannot be read, because it is damaged or another version has written
/// it.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadableExecution {
    /// The readable part.
    pub execution: OpenExecution,
    /// The fencing number.
    pub fence: i64,
    /// Why it cannot be read.
    pub reason: String,
}

/// A claim to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The execution.
    pub id: String,
    /// The fencing number of the claim.
    pub fence: i64,
    /// True when no attempt has reached the backend, in this claim or before.
    pub untried: bool,
}

/// The outcome of ending an `accepted` execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was never tried and has ended.
    Now,
    /// It may have reached the backend: the request to end it is stored, and due once it runs.
    Later,
    /// It is no longer `accepted`.
    NotAccepted,
}

/// Accepted executions. Each is claimed by one process at a time; a claim that is not released
/// expires.
#[async_trait]
pub trait ExecutionQueue {
    /// Claims unclaimed executions for `backend`, oldest first: at most `limit`, with inputs of at
    /// most `max_bytes` in total unless the first alone is larger.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_executions(
        &self,
        backend: &str,
        owner: &str,
        lease: Duration,
        limit: i64,
        max_bytes: i64,
    ) -> Result<ClaimedExecutions, Error>;

    /// Releases claims.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_executions(&self, claims: &[Release]) -> Result<(), Error>;

    /// Counts a refusal of this very execution by the backend, and blocks claims on it for `pause`.
    /// Returns the number of refusals; `None` when the claim is lost.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn count_refusal(
        &self,
        id: &str,
        fence: i64,
        pause: Duration,
    ) -> Result<Option<i32>, Error>;

    /// Makes an execution a dead letter, with `outcome`. False when the claim is lost.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn reject_execution(
        &self,
        id: &str,
        fence: i64,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<bool, Error>;

    /// Ends an `accepted` execution with `outcome` if it was never tried; otherwise stores the
    /// request to end it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn end_accepted(
        &self,
        id: &str,
        ending: &Ending,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<Ended, Error>;

    /// The ids of running executions of `backend` that are to be ended, with the stored request,
    /// unless that cannot be read.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wished_endings(
        &self,
        backend: &str,
        limit: i64,
    ) -> Result<Vec<(String, Result<Ending, Error>)>, Error>;

    /// Removes a stored request that the backend has received.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_wish(&self, id: &str) -> Result<(), Error>;
}
