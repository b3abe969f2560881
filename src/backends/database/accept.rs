//! Work to be accepted, and the outcome of accepting it.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{events::Event, executions::Execution, json::Fingerprint},
};

/// Work to be accepted, with its idempotency key.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// The work to store.
    pub work: Work,
    /// The key, if the client gave one.
    pub key: Option<KeyUse>,
}

/// The work to store.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Events, all or none. An event that is already stored with the same content is left
    /// unchanged.
    Events(Vec<NewEvent>),
    /// An execution.
    Execution(Box<NewRecord>),
}

/// An execution to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// Its record, which is `accepted`.
    pub execution: Execution,
    /// The event that announces it.
    pub announcement: NewEvent,
    /// The process that starts it at once, if any.
    pub claim: Option<Claim>,
}

/// An event to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// The event as it will be delivered.
    pub event: Event,
    /// Of the event as the client sent it. Events of ours need none: their ids are their own.
    pub fingerprint: Fingerprint,
}

/// The use of an `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// Principal, method and route; keys of different scopes are independent.
    pub scope: String,
    /// The key.
    pub key: String,
    /// Hash of the request body.
    pub fingerprint: Fingerprint,
    /// The answer to the request, now and whenever it is repeated.
    pub answer: String,
    /// How long the answer is kept.
    pub keep_for: Duration,
}

/// A claim on an execution to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The process.
    pub owner: String,
    /// How long it lasts.
    pub lease: Duration,
}

impl Claim {
    /// The fencing number of a claim that is made together with the record.
    pub const FIRST_FENCE: i64 = 1;
}

/// The outcome of accepting work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// It is stored.
    Stored,
    /// Another execution has the id.
    IdTaken,
    /// Another event has the source and id of the event at this index.
    EventTaken(usize),
    /// The key was used for the same request, which got this answer.
    Answered(String),
    /// The key was used for the same request, which another version of this program is serving and
    /// has not answered yet.
    Busy,
    /// The key was used for another request.
    KeyReused,
}

/// Stores accepted work.
#[async_trait]
pub trait Accept {
    /// Stores all admissions in one transaction, each with its key or not at all; the outcome of
    /// one does not affect the others.
    ///
    /// # Errors
    /// Then none is stored, unless `outcome_unknown()` says that the answer to the commit was lost.
    ///
    /// # Cancel safety
    /// A dropped call may have stored all of them; it never stores a part.
    async fn accept(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error>;

    /// Removes expired idempotency keys, at most `limit`. Returns their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_keys(&self, limit: i64) -> Result<usize, Error>;
}
