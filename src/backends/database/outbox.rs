//! Accepted events, and the lanes in which they are delivered.

use std::time::Duration;

use async_trait::async_trait;

use crate::{
    error::Error,
    model::{
        events::{Event, Position},
        lanes::{Lanes, Slots},
    },
};

/// A lane that this process has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The number of the lane.
    pub number: i32,
    /// The number of lanes into which the outbox was divided when it was claimed.
    pub of: Lanes,
    /// The fencing number: changes with an older number are refused.
    pub fence: i64,
}

impl Lane {
    /// The slots of these lanes.
    #[must_use]
    pub fn slots(lanes: &[Self]) -> Slots {
        lanes.iter().flat_map(|lane| lane.of.slots_of(lane.number)).collect()
    }
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

/// An accepted event that cannot be read, because it is damaged or another version has written it.
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
    /// The readable events.
    pub readable: Vec<PendingEvent>,
    /// The events in between that this program cannot read.
    pub unreadable: Vec<UnreadableEvent>,
}

/// An accepted event that the broker has acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct DeliveredEvent {
    /// Its place in the database's sequence.
    pub seq: i64,
    /// Its place in the broker; the previous version did not store it.
    pub position: Option<Position>,
    /// The event as it was delivered.
    pub json: String,
}

/// Accepted events, in lanes. A lane is claimed by one process at a time; a claim that is not
/// renewed expires.
#[async_trait]
pub trait Outbox {
    /// Stores the number of lanes that all processes are to use from now on, and returns the number
    /// that was stored before.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn want_lanes(&self, lanes: Lanes) -> Result<Lanes, Error>;

    /// Renews the claims of `owner`, and adjusts them towards its fair share of the lanes. Returns
    /// the lanes that it holds now.
    ///
    /// While another number of lanes is wanted than there is, releases them instead. The first
    /// process that finds all of them free makes the new ones. There are sixteen, whatever is
    /// wanted, while the previous program, which knows no other number, shares them.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn claim_lanes(&self, owner: &str, lease: Duration) -> Result<Vec<Lane>, Error>;

    /// Releases all lanes of `owner`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn release_lanes(&self, owner: &str) -> Result<(), Error>;

    /// Waiting events of these lanes, in the order in which they were accepted: at most `limit`,
    /// with at most `max_bytes` in total unless the first event alone is larger.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn pending_events(
        &self,
        held: &[Lane],
        limit: i64,
        max_bytes: i64,
    ) -> Result<PendingEvents, Error>;

    /// Marks events in lanes that `owner` still holds as delivered, each with its place in the
    /// broker. Returns their number.
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

    /// Queues delivered events in lanes that `owner` still holds for delivery again, unless that
    /// has happened meanwhile. Returns their number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn send_again(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error>;

    /// Counts a refusal of this very event by the broker. True when it was refused `most` times and
    /// is not tried again.
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

    /// Removes events that were delivered at least this long ago, at most `limit`. Returns their
    /// number.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn remove_delivered(&self, older_than: Duration, limit: i64) -> Result<usize, Error>;
}
