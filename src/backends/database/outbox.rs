//! Accepted events, and the lanes in which they are delivered.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{
        backlog::Backlog,
        events::{Event, Position},
    },
};

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

/// An accepted event that cannot be read: it is damaged, or another version has written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// The lane it belongs to.
    pub lane: i32,
    /// Why it cannot be read.
    pub reason: String,
}

/// Accepted events that wait, in the order in which they were accepted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PendingEvents {
    /// Those that can be handed over.
    pub readable: Vec<PendingEvent>,
    /// Those in between that cannot, because this program cannot read them.
    pub unreadable: Vec<UnreadableEvent>,
}

/// An accepted event that the broker has acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveredEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// Its place in the broker, which the version before this one did not store.
    pub position: Option<Position>,
    /// The event as it was delivered.
    pub json: String,
}

/// Accepted events, in lanes. A lane is claimed by one process at a time; a claim that is not
/// renewed ends by itself.
#[async_trait]
pub trait Outbox {
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

    /// Events of these lanes that wait, in the order in which they were accepted: at most `limit`,
    /// with at most `max_bytes` in all unless the first alone has more.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn pending_events(
        &self,
        held: &[Lane],
        limit: i64,
        max_bytes: i64,
    ) -> Result<PendingEvents, Error>;

    /// Marks events as delivered, those in lanes that `owner` still holds, each with its place in
    /// the broker. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn mark_delivered(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error>;

    /// Delivered events before `before` in the database's sequence, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn delivered_events(
        &self,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<DeliveredEvent>, Error>;

    /// The place of the newest delivered event of each of these lanes.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn newest_places(&self, held: &[Lane]) -> Result<Vec<Position>, Error>;

    /// Delivered events of these lanes after `after` in the database's sequence, oldest first, each
    /// with its place in the broker.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn delivered_places(
        &self,
        held: &[Lane],
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Position)>, Error>;

    /// Lets delivered events in lanes that `owner` still holds be handed over again, unless they
    /// were meanwhile. Gives their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn send_again(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
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
