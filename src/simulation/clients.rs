//! Clients that send events and executions, and remember what was accepted.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use parking_lot::Mutex;
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};

use super::{
    fleet::Fleet,
    member::Member,
    world::{ECHO, REFUSED, UNREADABLE, World},
};
use crate::{
    error::ErrorKind,
    model::{events::Event, json::Json},
    services::{
        events::ChosenBy,
        executions::{NewExecution, Started},
    },
};

/// Clients, each of which sends one thing after the other.
const CLIENTS: usize = 4;
/// Executions that a client starts side by side, now and then.
const BURST: usize = 200;
/// The longest pause between two requests of one client.
const PAUSE: Duration = Duration::from_millis(200);
/// A replica that does not answer for so long is left for another.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time that a client repeats a request for: longer than any fault.
const REPEATS: Duration = Duration::from_secs(100);
/// The source of the clients' events.
pub(super) const SOURCE: &str = "client";

/// What was accepted.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Ids of events, by subject, in the order of their acceptance.
    pub(super) events: BTreeMap<String, Vec<String>>,
    pub(super) executions: Vec<String>,
    /// Executions that somebody wanted to end.
    pub(super) cancelled: BTreeSet<String>,
}

/// Sends to any replica for a time.
pub(super) async fn send(world: &World, fleet: &Fleet, during: Duration) -> Accepted {
    let accepted = Mutex::default();
    let until = Instant::now() + during;
    let clients =
        (0..CLIENTS).map(|number| Client { world, fleet, accepted: &accepted, number }.run(until));
    join_all(clients).await;
    accepted.into_inner()
}

struct Client<'a> {
    world: &'a World,
    fleet: &'a Fleet,
    accepted: &'a Mutex<Accepted>,
    number: usize,
}

impl Client<'_> {
    async fn run(self, until: Instant) {
        let mut sent = 0;
        while Instant::now() < until {
            let id = format!("{}-{sent}", self.number);
            match self.world.random(|random| random.random_range(0..200)) {
                0..10 => self.send_event(id, UNREADABLE).await,
                10..20 => self.send_event(id, REFUSED).await,
                20..100 => self.send_event(id, "good").await,
                100..110 => self.start_execution(&id, UNREADABLE).await,
                110..120 => self.start_execution(&id, REFUSED).await,
                120..130 => {
                    self.start_execution(&id, ECHO).await;
                    self.cancel_execution(&id).await;
                }
                130..132 => {
                    let ids: Vec<String> = (0..BURST).map(|part| format!("{id}-{part}")).collect();
                    join_all(ids.iter().map(|id| self.start_execution(id, ECHO))).await;
                }
                _ => self.start_execution(&id, ECHO).await,
            }
            sent += 1;
            sleep(self.world.random(|random| random.random_range(Duration::ZERO..PAUSE))).await;
        }
    }

    /// Any replica that has not been killed.
    fn member(&self) -> &Member {
        let alive: Vec<_> = self.fleet.members.iter().filter(|member| member.is_alive()).collect();
        alive[self.world.random(|random| random.random_range(0..alive.len()))]
    }

    /// Repeats a request, at any replica, until it is answered.
    async fn until_answered<T>(&self, request: impl AsyncFn(&Member) -> Option<T>) -> Option<T> {
        let until = Instant::now() + REPEATS;
        while Instant::now() < until {
            if let Ok(Some(answer)) = timeout(PATIENCE, request(self.member())).await {
                return Some(answer);
            }
            sleep(PAUSE).await;
        }
        None
    }

    async fn send_event(&self, id: String, kind: &str) {
        let subject = format!("s{}", self.number);
        let sent = self.until_answered(async |member| {
            let mut event = Event::with_id(id.clone(), kind, Some(subject.clone()), None);
            event.source = SOURCE.to_owned();
            member.events.accept(vec![event], ChosenBy::Client, None, String::new).await.ok()
        });
        if sent.await.is_some() {
            self.accepted.lock().events.entry(subject).or_default().push(id);
        }
    }

    async fn start_execution(&self, id: &str, workflow: &str) {
        let started = self.until_answered(async |member| {
            let request = NewExecution {
                workflow: workflow.to_owned(),
                input: Json::null(),
                id: Some(id.to_owned()),
                timeout: None,
            };
            match member.executions.start(request, None, |new| new.id.clone()).await {
                Ok(Started::New(_) | Started::Before(_)) => Some(()),
                // An earlier attempt was stored, and its answer was lost.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Some(()),
                Err(_) => None,
            }
        });
        if started.await.is_some() {
            self.accepted.lock().executions.push(id.to_owned());
        }
    }

    /// Asks once; whether it was heard is not known.
    async fn cancel_execution(&self, id: &str) {
        self.accepted.lock().cancelled.insert(id.to_owned());
        let cancel = self.member().executions.cancel(id);
        let _heard_or_not = timeout(PATIENCE, cancel).await;
    }
}
