//! The queue in which accepted executions wait for their start.

use std::time::Duration;

use async_trait::async_trait;

use super::NewEvent;
use crate::{
    error::Error,
    model::{
        backlog::Backlog,
        executions::{Ending, Execution, OpenExecution, Outcome},
    },
};

/// An execution whose hand-over this process has claimed.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimedExecution {
    /// The record.
    pub execution: Execution,
    /// Proves the claim: marks made with an older number are refused.
    pub fence: i64,
    /// How long ago a try was made that may have reached the backend.
    pub first_tried: Option<Duration>,
}

/// Executions whose hand-over this process has claimed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimedExecutions {
    /// Those that can be handed over.
    pub readable: Vec<ClaimedExecution>,
    /// Those that cannot, because this program cannot read them.
    pub unreadable: Vec<UnreadableExecution>,
}

/// A claimed execution that cannot be read: it is damaged, or another version has written it.
#[derive(Clone, Debug, PartialEq)]
pub struct UnreadableExecution {
    /// What can be read of it.
    pub execution: OpenExecution,
    /// Proves the claim.
    pub fence: i64,
    /// Why it cannot be read.
    pub reason: String,
}

/// How an `accepted` execution was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was never tried and has ended.
    Now,
    /// It may have reached the backend: the wish is stored, and due once the execution runs.
    Later,
    /// It is not `accepted` any more.
    NotAccepted,
}

/// Accepted executions. A hand-over is claimed by one process at a time; a claim that is not
/// released ends by itself.
#[async_trait]
pub trait ExecutionQueue {
    /// Claims executions for `backend` that nobody holds, oldest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_executions(
        &self,
        backend: &str,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<ClaimedExecutions, Error>;

    /// Gives a claim back. `untried`: no try has reached the backend, this one included.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_execution(&self, id: &str, fence: i64, untried: bool) -> Result<(), Error>;

    /// Counts that the backend refused this very execution, and lets nobody claim it for `pause`.
    /// Gives the number of refusals; nothing when the claim is lost.
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

    /// Ends an `accepted` execution with `outcome` if it was never tried, else stores the wish.
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

    /// The ids of running executions of `backend` that are to be ended, and how, unless the wish
    /// cannot be read.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wished_endings(
        &self,
        backend: &str,
        limit: i64,
    ) -> Result<Vec<(String, Result<Ending, Error>)>, Error>;

    /// Forgets a wish that the backend has.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_wish(&self, id: &str) -> Result<(), Error>;

    /// What is not handed over; counts no further than one beyond `most`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn waiting_executions(&self, most: i64) -> Result<Backlog, Error>;
}
