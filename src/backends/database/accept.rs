//! What is accepted, and what became of it.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{events::Event, executions::Execution},
};

/// Work to be accepted, with the idempotency key it came with.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    /// What is to be stored.
    pub work: Work,
    /// The key, if the client gave one.
    pub key: Option<KeyUse>,
}

/// What is to be stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Events, all or none. One that is stored already, with the same content, stays as it is.
    Events(Vec<NewEvent>),
    /// An execution.
    Execution(Box<NewRecord>),
}

/// An execution to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// Its record, which is `accepted`.
    pub execution: Execution,
    /// Announces it.
    pub announcement: NewEvent,
    /// Who hands it over at once, if anybody does.
    pub claim: Option<Claim>,
}

/// An event to be accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// The event as it will be delivered.
    pub event: Event,
    /// Hash of the event as the client sent it, by which a repetition is recognised.
    pub content_hash: String,
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
    /// What the request is answered, now and whenever it is repeated.
    pub answer: String,
    /// How long the answer is kept.
    pub keep_for: Duration,
}

/// A claim on an execution's hand-over.
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

/// What became of work that was to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// It is stored.
    Stored,
    /// Another execution has the id.
    IdTaken,
    /// Another event has the source and id of the event at this place.
    EventTaken(usize),
    /// The key was used for the same request: this was the answer.
    Answered(String),
    /// The key was used for the same request, which another version of this program serves and has
    /// not answered yet.
    Busy,
    /// The key was used for another request.
    KeyReused,
}

/// Stores accepted work.
#[async_trait]
pub trait Accept {
    /// Stores all admissions in one transaction, each with its key or not at all; what becomes of
    /// one does not touch the others.
    ///
    /// # Errors
    /// Then none is stored, unless `outcome_unknown()` tells that the answer to the commit was lost.
    ///
    /// # Cancel safety
    /// A dropped call may have stored all of them; it never stores a part.
    async fn accept(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error>;

    /// Removes idempotency keys that are kept no longer, at most `limit`. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_keys(&self, limit: i64) -> Result<usize, Error>;
}
