//! Event brokers: they accept events and let readers follow and resume the stream.

mod client;
mod memory;
#[cfg(feature = "redis")]
mod redis;

#[cfg(test)]
mod contract;

use std::time::Duration;

use async_trait::async_trait;

use super::database::Database;
use crate::{
    config::{WellKnownVariable, verbatim},
    connection::{Backend, Client, Registry},
    error::Error,
    model::events::{Event, Position, Range, StoredEvent},
};

/// The name of the family.
pub const FAMILY: &str = "event_broker";

/// Variables of the Redis backend, known even to a build without it, which must reject them.
const REDIS_VARIABLES: [WellKnownVariable; 1] =
    [WellKnownVariable { name: "REDIS_URL", key: "url", selects: true, read: verbatim }];

/// Accepts events and keeps them in one stream that can be read from any place it still holds.
#[async_trait]
pub trait EventBroker: Backend {
    /// Appends the events in order, all or none.
    ///
    /// Returns once the broker has acknowledged them, with the place of each.
    ///
    /// # Errors
    /// `outcome_unknown()` tells whether the events may have been appended nevertheless.
    ///
    /// # Cancel safety
    /// A dropped call may or may not append the events; it never appends only some of them.
    async fn publish(&self, events: &[&Event]) -> Result<Vec<Position>, Error>;

    /// Returns those of `places`, which events once had, that the stream has lost, for example by a
    /// flush or the failover to a copy that lagged behind. Events that were dropped because the
    /// stream was full are not lost.
    ///
    /// # Errors
    /// When the broker cannot be queried.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error>;

    /// The part of the stream that can be read now.
    ///
    /// # Errors
    /// When the broker cannot be queried.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn range(&self) -> Result<Range, Error>;

    /// Returns at most `limit` events after `position`, oldest first; empty at the end of the
    /// stream.
    ///
    /// # Errors
    /// When the broker cannot be queried.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn read(&self, after: Position, limit: usize) -> Result<Vec<StoredEvent>, Error>;

    /// Like [`EventBroker::read`], but waits up to `wait` for an event if none exists. This is the
    /// only blocking read of the family: call it on a [`Lease`](crate::connection::Lease).
    ///
    /// # Errors
    /// When the broker cannot be queried, or the connection breaks while waiting.
    ///
    /// # Cancel safety
    /// Has no effect: reading consumes nothing.
    async fn wait(
        &self,
        after: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<StoredEvent>, Error>;
}

/// The brokers of this build.
#[must_use]
pub fn registry(database: Client<dyn Database>) -> Registry<dyn EventBroker> {
    let registry = Registry::new(FAMILY).register(memory::Factory::new(database));
    #[cfg(feature = "redis")]
    let registry = registry.register(redis::Factory);
    #[cfg(not(feature = "redis"))]
    let registry = registry.compiled_out(super::compiled_out(FAMILY, "redis", &REDIS_VARIABLES));
    registry
}
