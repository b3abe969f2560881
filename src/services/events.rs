//! Events: accepted durably and delivered by the relay, or published directly, and followed.

pub mod relay;
pub mod stream;

use std::collections::HashMap;

use self::relay::Relay;
use super::{
    accept::{Acceptor, RequestKey},
    depth::Depth,
};
use crate::{
    backends::{
        database::{Acceptance, Admission, NewEvent, Work},
        event_broker::EventBroker,
    },
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        events::{self, Event},
        json::Fingerprint,
    },
    telemetry::traces::TraceContext,
};

/// The side that chose the ids of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// A client, which may send an event again.
    Client,
    /// This service, for this request.
    Service,
}

/// Publishes events.
#[derive(Clone, Debug)]
pub struct Events {
    acceptor: Acceptor,
    broker: Client<dyn EventBroker>,
    relay: Relay,
}

impl Events {
    /// Accepts events through `acceptor`; `relay` delivers them to `broker`.
    #[must_use]
    pub fn new(acceptor: Acceptor, broker: Client<dyn EventBroker>, relay: Relay) -> Self {
        Self { acceptor, broker, relay }
    }

    /// Accepts the events in order, all or none: once this returns they are committed, and will be
    /// delivered. Events that name no trace become part of the caller's. `answer` is the client's
    /// answer, now and, if it sent a key, whenever it repeats the request. Returns the answer to
    /// the first request with the key if this is not the first.
    ///
    /// # Errors
    /// `AlreadyExists` when another event has the source and id of one of them; `Conflict` and
    /// `KeyReused` by the key; `Overloaded` when too many wait; `OutcomeUnknown` when the answer to
    /// the commit was lost; or an error of the database.
    pub async fn accept(
        &self,
        events: Vec<Event>,
        ids: ChosenBy,
        key: Option<RequestKey>,
        answer: impl FnOnce() -> String,
    ) -> Result<Option<String>, Error> {
        if events.is_empty() {
            return Ok(None);
        }
        self.relay.admit()?;
        let key = key.map(|key| self.acceptor.key_use(key, answer()));
        let events = match ids {
            ChosenBy::Client => without_repeats(events.into_iter().map(from_client))?,
            ChosenBy::Service => events.into_iter().map(new_event).collect(),
        };
        let names: Vec<(String, String)> = match ids {
            ChosenBy::Client => events.iter().map(name).collect(),
            ChosenBy::Service => Vec::new(),
        };
        let (count, slots) = (events.len(), events.iter().map(|new| new.event.slot()).collect());
        let work = Work::Events(events);
        match self.acceptor.accept(Admission { work, key }).await? {
            Acceptance::EventTaken(place) => Err(taken(&names[place])),
            Acceptance::Answered(answer) => Ok(Some(answer)),
            _ => {
                self.relay.accepted(count, &slots);
                Ok(None)
            }
        }
    }

    /// Records that this many events about an execution were stored and wait for delivery.
    pub(super) fn announced(&self, execution: &str, events: usize) {
        let slot = events::slot(events::DEFAULT_SOURCE, execution);
        self.relay.announced(events, slot);
    }

    /// Refuses further executions while too many events about executions wait.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(super) fn admit_execution(&self) -> Result<(), Error> {
        self.relay.admit_execution()
    }

    /// The executions that wait.
    pub(super) fn executions(&self) -> Depth {
        self.relay.executions()
    }

    /// Publishes the events in order, all or none, and returns once the broker has them. Events
    /// that name no trace become part of the caller's.
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

/// An event whose id is new, or identifies its announcement: two with the same id are the same.
pub(super) fn new_event(event: Event) -> NewEvent {
    NewEvent { event: within_trace(event), fingerprint: Fingerprint::default() }
}

/// An event whose id may be that of an earlier one with different content.
fn from_client(event: Event) -> NewEvent {
    let fingerprint = event.fingerprint();
    NewEvent { event: within_trace(event), fingerprint }
}

fn name(new: &NewEvent) -> (String, String) {
    (new.event.source.clone(), new.event.id.clone())
}

/// Each event once, as a request may name the same event twice.
///
/// # Errors
/// `AlreadyExists` when the two are not the same.
fn without_repeats(events: impl Iterator<Item = NewEvent>) -> Result<Vec<NewEvent>, Error> {
    let mut named: HashMap<(String, String), Fingerprint> = HashMap::new();
    let mut once = Vec::new();
    for new in events {
        let name = name(&new);
        match named.get(&name) {
            None => {
                named.insert(name, new.fingerprint.clone());
                once.push(new);
            }
            Some(first) if *first == new.fingerprint => {}
            Some(_) => return Err(taken(&name)),
        }
    }
    Ok(once)
}

fn taken((source, id): &(String, String)) -> Error {
    let message =
        format!("another event of the source {source:?} has the id {id:?}; nothing was stored");
    Error::new(ErrorKind::AlreadyExists, message)
}

fn within_trace(event: Event) -> Event {
    match TraceContext::current() {
        Some(trace) => event.within_trace(&trace.to_string()),
        None => event,
    }
}
