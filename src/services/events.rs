//! Publishing events: accepted durably and handed over by the relay, or directly.

use sha2::{Digest, Sha256};

use super::relay::Relay;
use crate::{
    backends::{
        database::{Database, NewEvent},
        event_broker::EventBroker,
    },
    connection::{Managed, Operation},
    error::{Error, ErrorKind},
    model::events::Event,
    telemetry::traces::TraceContext,
};

// A repeated event keeps its id, and consumers drop repeats by it; so publishing may be repeated.
pub(super) const PUBLISH: Operation = Operation::idempotent("publish");
// An event that is stored already stays as it is; so storing may be repeated.
const STORE: Operation = Operation::idempotent("store_events");

/// Publishes events.
#[derive(Clone, Debug)]
pub struct Events {
    database: Managed<dyn Database>,
    broker: Managed<dyn EventBroker>,
    relay: Relay,
}

impl Events {
    /// Accepts events into `database`, from where `relay` hands them over to `broker`.
    #[must_use]
    pub fn new(
        database: Managed<dyn Database>,
        broker: Managed<dyn EventBroker>,
        relay: Relay,
    ) -> Self {
        broker.declare(&[PUBLISH]);
        database.declare(&[STORE]);
        Self { database, broker, relay }
    }

    /// Accepts the events in order, all or none: once this returns they are committed, and will be
    /// delivered. Events that name no trace are part of the one that the caller serves.
    ///
    /// # Errors
    /// `AlreadyExists` when another event has the source and id of one of them; `Overloaded` when
    /// too many wait; `OutcomeUnknown` when the answer to the commit was lost; or why the database
    /// cannot be asked.
    pub async fn accept(&self, events: &[Event]) -> Result<(), Error> {
        self.relay.admit()?;
        let new: Vec<NewEvent> = events.iter().map(new_event).collect();
        let new = &new;
        let stored = self
            .database
            .call(STORE, |database| async move { database.store_events(new).await })
            .await;
        let taken = match stored {
            Ok(taken) => taken,
            Err(error) if error.outcome_unknown() => {
                let message = "it is not known whether the events were accepted";
                return Err(Error::new(ErrorKind::OutcomeUnknown, message).with_source(error));
            }
            Err(error) => return Err(error),
        };
        if let Some(&first) = taken.first() {
            let Event { id, source, .. } = &events[first];
            let message = format!(
                "another event of the source {source:?} has the id {id:?}; nothing was stored"
            );
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        self.relay.accepted(events.len());
        Ok(())
    }

    /// Publishes the events in order, all or none, and returns once the broker has them. Events
    /// that name no trace are part of the one that the caller serves.
    ///
    /// # Errors
    /// When the broker does not acknowledge; `outcome_unknown()` tells whether it may have them.
    pub async fn publish(&self, events: Vec<Event>) -> Result<(), Error> {
        let events: Vec<Event> = events.into_iter().map(within_trace).collect();
        let events = &events;
        self.broker.call(PUBLISH, |broker| async move { broker.publish(events).await }).await
    }
}

fn new_event(event: &Event) -> NewEvent {
    let content_hash = format!("{:x}", Sha256::digest(event.to_json()));
    NewEvent { event: within_trace(event.clone()), content_hash }
}

fn within_trace(mut event: Event) -> Event {
    if let Some(trace) = TraceContext::current() {
        let extension = event.extensions.entry("traceparent".to_owned());
        extension.or_insert_with(|| trace.to_string().into());
    }
    event
}
