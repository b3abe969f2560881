//! Events: accepted durably and delivered by the relay, or published directly, and followed.

pub mod relay;
pub mod stream;

use sha2::{Digest, Sha256};

use self::relay::Relay;
use super::accept::{Acceptor, RequestKey};
use crate::{
    backends::{
        database::{Acceptance, Admission, NewEvent, Work},
        event_broker::EventBroker,
    },
    connection::Client,
    error::{Error, ErrorKind},
    model::events::Event,
    telemetry::traces::TraceContext,
};

/// Publishes events.
#[derive(Clone, Debug)]
pub struct Events {
    acceptor: Acceptor,
    broker: Client<dyn EventBroker>,
    relay: Relay,
}

impl Events {
    /// Accepts events by `acceptor`; `relay` hands them over to `broker`.
    #[must_use]
    pub fn new(acceptor: Acceptor, broker: Client<dyn EventBroker>, relay: Relay) -> Self {
        Self { acceptor, broker, relay }
    }

    /// Accepts the events in order, all or none: once this returns they are committed, and will be
    /// delivered. Events that name no trace are part of the one that the caller serves. `answer` is
    /// what the client gets, now and, if it gave a key, whenever it repeats the request. Gives the
    /// answer to the first request with the key if this is not the first.
    ///
    /// # Errors
    /// `AlreadyExists` when another event has the source and id of one of them; `Conflict` and
    /// `KeyReused` by the key; `Overloaded` when too many wait; `OutcomeUnknown` when the answer to
    /// the commit was lost; or why the database cannot be asked.
    pub async fn accept(
        &self,
        events: &[Event],
        key: Option<RequestKey>,
        answer: impl FnOnce() -> String,
    ) -> Result<Option<String>, Error> {
        if events.is_empty() {
            return Ok(None);
        }
        self.relay.admit()?;
        let key = key.map(|key| self.acceptor.key_use(key, answer()));
        let work = Work::Events(events.iter().map(new_event).collect());
        match self.acceptor.accept(Admission { work, key }).await? {
            Acceptance::EventTaken(place) => {
                let Event { id, source, .. } = &events[place];
                let message = format!(
                    "another event of the source {source:?} has the id {id:?}; nothing was stored"
                );
                Err(Error::new(ErrorKind::AlreadyExists, message))
            }
            Acceptance::Answered(answer) => Ok(Some(answer)),
            _ => {
                self.stored(events.len());
                Ok(None)
            }
        }
    }

    /// Tells that so many events were stored and wait to be handed over.
    pub(super) fn stored(&self, events: usize) {
        self.relay.accepted(events);
    }

    /// Publishes the events in order, all or none, and returns once the broker has them. Events
    /// that name no trace are part of the one that the caller serves.
    ///
    /// # Errors
    /// When the broker does not acknowledge; `outcome_unknown()` tells whether it may have them.
    pub async fn publish(&self, events: Vec<Event>) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let events: Vec<Event> = events.into_iter().map(within_trace).collect();
        let events: &Vec<&Event> = &events.iter().collect();
        self.broker.publish(events).await.map(drop)
    }
}

pub(super) fn new_event(event: &Event) -> NewEvent {
    let content_hash = hex::encode(Sha256::digest(event.to_json()));
    NewEvent { event: within_trace(event.clone()), content_hash }
}

fn within_trace(mut event: Event) -> Event {
    if let Some(trace) = TraceContext::current() {
        let extension = event.extensions.entry("traceparent".to_owned());
        extension.or_insert_with(|| trace.to_string().into());
    }
    event
}
