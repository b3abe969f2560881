//! The stream in this process's memory, for one process. After a restart, durably accepted events
//! are restored from the database at their places.

mod sole_use;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};

use self::sole_use::SoleUse;
use super::{EventBroker, FAMILY};
use crate::{
    backends::database::Database,
    config::{BackendConfig, BackendDescriptor, IN_THIS_PROCESS, Section, Size, Table},
    connection::{Backend, BuildContext, Client, Factory as BackendFactory},
    error::Error,
    model::{
        events::{Event, Position, Range, StoredEvent},
        time,
    },
};

/// The number of events that are read from the database at once.
const PAGE: i64 = 1000;

/// The stream in this process's memory: for one instance, a second on the same database is refused.
/// After a restart it holds what was accepted durably within `outbox.replay_window`; what was
/// delivered directly is lost.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// Events kept for readers that resume; older ones are dropped.
    #[schemars(range(min = 1, max = 10_000_000))]
    max_events: usize,
    /// The same bound in bytes; whichever is reached first counts.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "16GiB"))]
    max_bytes: Size,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_events: 10_000, max_bytes: Size(16 << 20) }
    }
}

impl BackendConfig for Config {
    fn address(&self) -> String {
        IN_THIS_PROCESS.to_owned()
    }
}

pub(super) struct Factory {
    database: Client<dyn Database>,
    brokers: Arc<AtomicUsize>,
}

impl Factory {
    pub(super) fn new(database: Client<dyn Database>) -> Self {
        Self { database, brokers: Arc::default() }
    }

    /// Returns the events of an earlier stream, oldest first, at most `most`.
    async fn earlier(&self, most: usize) -> Result<Vec<StoredEvent>, Error> {
        let mut earlier: Vec<StoredEvent> = Vec::new();
        let mut before = None;
        while earlier.len() < most {
            let page = self.database.delivered_events(before, PAGE).await?;
            before = page.last().map(|event| event.seq);
            let ended = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            earlier.extend(page.into_iter().filter_map(|event| {
                Some(StoredEvent { position: event.position?, json: event.json.into() })
            }));
            if ended {
                break;
            }
        }
        earlier.sort_unstable_by_key(|event| event.position);
        Ok(earlier)
    }
}

#[async_trait]
impl BackendFactory<dyn EventBroker> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "memory",
            variables: &[],
            shared: false,
            example: "",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn EventBroker>, Error> {
        let config: Config = section.read()?;
        // Taken first, so that no other process delivers events after this broker was filled.
        let sole = SoleUse::take(&self.database, &self.brokers, context).await?;
        let earlier = self.earlier(config.max_events).await?;
        Ok(Arc::new(MemoryBroker { sole, ..MemoryBroker::new(config, earlier) }))
    }

    /// Needs no connection. The broker is not filled, which would open the database permanently.
    async fn check(
        &self,
        section: &Section,
        _context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        section.read::<Config>().map(|_| None)
    }
}

/// Keeps the most recent events in a ring.
#[derive(Debug)]
struct MemoryBroker {
    config: Config,
    sole: Option<Arc<SoleUse>>,
    ring: Mutex<Ring>,
    newest: watch::Sender<Position>,
}

#[derive(Debug)]
struct Ring {
    events: VecDeque<StoredEvent>,
    bytes: usize,
    /// The place of the last event that was dropped, or the place where the stream began.
    complete_after: Position,
    newest: Position,
}

impl MemoryBroker {
    fn new(config: Config, earlier: Vec<StoredEvent>) -> Self {
        // A place before the first of them, which an earlier process may have issued, cannot be
        // resumed from: its reader is notified of the gap.
        let newest = next_position(earlier.last().map_or(Position::START, |last| last.position));
        let complete_after = earlier.first().map_or(newest, |first| first.position.before());
        let bytes = earlier.iter().map(|event| event.json.len()).sum();
        let mut ring = Ring { events: earlier.into(), bytes, complete_after, newest };
        ring.trim(&config);
        Self { config, sole: None, ring: Mutex::new(ring), newest: watch::Sender::new(newest) }
    }

    fn check_sole_use(&self) -> Result<(), Error> {
        self.sole.as_ref().map_or(Ok(()), |sole| sole.check())
    }
}

impl Ring {
    fn trim(&mut self, config: &Config) {
        while self.events.len() > config.max_events || self.bytes > config.max_bytes.0 {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.json.len();
            self.complete_after = dropped.position;
        }
    }
}

/// Returns the place after `newest`, in the current millisecond unless the clock is behind it.
fn next_position(newest: Position) -> Position {
    let since_epoch = std::time::SystemTime::from(time::now()).duration_since(UNIX_EPOCH);
    let millis = since_epoch.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    if millis > newest.millis {
        Position { millis, number: 0 }
    } else {
        Position { number: newest.number + 1, ..newest }
    }
}

#[async_trait]
impl Backend for MemoryBroker {
    async fn probe(&self) -> Result<(), Error> {
        self.check_sole_use()
    }

    async fn close(&self) {
        if let Some(sole) = &self.sole {
            sole.give_back().await;
        }
    }
}

#[async_trait]
impl EventBroker for MemoryBroker {
    async fn publish(&self, events: &[&Event]) -> Result<Vec<Position>, Error> {
        self.check_sole_use()?;
        let mut ring = self.ring.lock();
        let mut places = Vec::with_capacity(events.len());
        for event in events {
            let json = Arc::clone(event.document());
            ring.newest = next_position(ring.newest);
            ring.bytes += json.len();
            let position = ring.newest;
            ring.events.push_back(StoredEvent { position, json });
            places.push(position);
        }
        ring.trim(&self.config);
        // Sent under the lock, so that readers see places in order.
        self.newest.send_replace(ring.newest);
        Ok(places)
    }

    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
        let ring = self.ring.lock();
        let lost = |place: &&Position| {
            let at = ring.events.binary_search_by_key(*place, |event| event.position);
            **place > ring.complete_after && at.is_err()
        };
        Ok(places.iter().filter(lost).copied().collect())
    }

    async fn range(&self) -> Result<Range, Error> {
        let ring = self.ring.lock();
        Ok(Range { complete_after: ring.complete_after, newest: ring.newest })
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<StoredEvent>, Error> {
        let ring = self.ring.lock();
        let from = ring.events.partition_point(|event| event.position <= after);
        Ok(ring.events.range(from..).take(limit).cloned().collect())
    }

    async fn wait(
        &self,
        after: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<StoredEvent>, Error> {
        let mut newest = self.newest.subscribe();
        // Timeout and closing both mean that no further events can be read now.
        let _elapsed = timeout(wait, newest.wait_for(|newest| *newest > after)).await.is_err();
        self.read(after, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::event_broker::contract;

    fn broker(max_events: usize) -> MemoryBroker {
        MemoryBroker::new(Config { max_events, ..Config::default() }, Vec::new())
    }

    #[tokio::test]
    async fn the_memory_broker_fulfils_the_contract() {
        contract::suite(Arc::new(broker(10_000))).await;
    }

    #[tokio::test]
    async fn a_reader_behind_the_ring_cannot_resume() {
        let broker = broker(2);
        let begin = broker.range().await.unwrap().newest;
        for _ in 0..3 {
            broker.publish(&[&Event::new("a", None, None)]).await.unwrap();
        }
        let range = broker.range().await.unwrap();
        assert!(!range.can_resume_after(begin));
        assert_eq!(broker.read(range.complete_after, 9).await.unwrap().len(), 2);
    }

    #[test]
    fn places_grow_even_when_the_clock_steps_back() {
        let ahead = Position { millis: u64::MAX, number: 3 };
        assert!(next_position(ahead) > ahead);
    }
}
