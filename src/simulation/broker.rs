//! A broker in memory.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    link::Link,
    world::{REFUSED, Truth, World},
};
use crate::{
    backends::event_broker::EventBroker,
    connection::Backend,
    error::{Error, ErrorKind},
    model::events::{Event, Position, Range, StoredEvent},
};

/// One replica's way to the broker.
#[derive(Debug)]
pub(super) struct SimulatedBroker(pub(super) Link);

impl Truth {
    /// The place of the newest entry of the stream.
    fn newest(&self) -> Position {
        Position { millis: 1, number: self.stream.len() as u64 }
    }
}

#[async_trait]
impl Backend for SimulatedBroker {
    async fn probe(&self) -> Result<(), Error> {
        self.0.probe().await
    }

    async fn close(&self) {}
}

#[async_trait]
impl EventBroker for SimulatedBroker {
    /// All or none; an event whose type says so is refused.
    async fn publish(&self, events: &[&Event]) -> Result<Vec<Position>, Error> {
        let publish = |truth: &mut Truth, _: &World| {
            if events.iter().any(|event| event.kind == REFUSED) {
                return Err(Error::new(ErrorKind::InvalidInput, "the broker refuses it"));
            }
            let mut places = Vec::new();
            for event in events {
                truth.stream.push((*event).clone());
                places.push(truth.newest());
            }
            Ok(places)
        };
        self.0.call("publish", publish).await
    }

    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
        let look = |truth: &mut Truth, _: &World| {
            let newest = truth.newest();
            Ok(places.iter().copied().filter(|place| *place > newest).collect())
        };
        self.0.call("lost", look).await
    }

    async fn range(&self) -> Result<Range, Error> {
        let range = |truth: &mut Truth, _: &World| {
            Ok(Range { complete_after: Position::START, newest: truth.newest() })
        };
        self.0.call("range", range).await
    }

    async fn read(&self, _: Position, _: usize) -> Result<Vec<StoredEvent>, Error> {
        Ok(Vec::new())
    }

    async fn wait(&self, _: Position, _: usize, _: Duration) -> Result<Vec<StoredEvent>, Error> {
        std::future::pending().await
    }
}
