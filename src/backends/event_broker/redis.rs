//! The stream in Redis: for any number of processes.
//!
//! Commands of all callers share one multiplexed connection, because that is several times faster
//! than one pooled connection per call. A blocking read would delay every caller on it, so each
//! read has a pooled connection to itself. Probes also have their own connection, so that they
//! measure the server and not the queue.

mod agentarea;
mod compatibility;
mod config;
mod durability;
mod entries;
mod link;
mod servers;
mod translate;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use redis::{Cmd, Script};
use tokio::time::{Instant, timeout};

pub(super) use self::config::Config;
use self::{
    agentarea::{APPEND_AND_PUBLISH, envelope},
    compatibility::check_server,
    config::Wire,
    entries::{Entries, FIELD, Page, parse_place},
    link::{Connector, Exclusive, Line},
    servers::Access,
};
use super::{EventBroker, FAMILY, REDIS_VARIABLES};
use crate::{
    backends::{login::Login, pool::Pool},
    config::{BackendDescriptor, Section, Table},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
    model::{
        events::{Event, Position, Range, StoredEvent},
        time,
    },
};

/// The time for which the key of a probe outlives it.
const PROBE_KEY_SECONDS: u64 = 60;
/// The number of consecutive calls dropped without an answer after which a connection is abandoned:
/// a silently dead link would otherwise swallow calls until the system's own timeout elapses.
const PATIENCE: u32 = 3;

pub(super) struct Factory;

#[async_trait]
impl BackendFactory<dyn EventBroker> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "redis",
            variables: &REDIS_VARIABLES,
            shared: true,
            example: "REDIS_URL=redis://redis:6379",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn EventBroker>, Error> {
        let broker = RedisBroker::new(section.read()?, context)?;
        // The probe detects operations that a server may refuse although it answers.
        tokio::try_join!(
            broker.probe(),
            check_server(&broker.commands, broker.config.mode),
            broker.ask_largest_text()
        )?;
        Ok(Arc::new(broker))
    }

    async fn check(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        let broker = RedisBroker::new(section.read()?, context)?;
        tokio::try_join!(broker.probe(), check_server(&broker.commands, broker.config.mode))?;
        let note = durability::what_it_may_lose(&broker.commands).await;
        broker.close().await;
        Ok(note)
    }
}

/// Keeps the events in a stream of Redis.
struct RedisBroker {
    config: Config,
    script: Script,
    commands: Line,
    probes: Line,
    probe_key: String,
    /// True when the last probe failed or was abandoned.
    unanswered_probe: AtomicBool,
    /// The connections of blocking reads.
    pool: Pool<Connector>,
    connect_timeout: Duration,
    /// The longest text that the server accepts, in bytes.
    largest_text: AtomicUsize,
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl RedisBroker {
    fn new(config: Config, context: &BuildContext) -> Result<Self, Error> {
        let connect_timeout = context.pool.connect_timeout;
        let access = Access { config: config.clone(), connect_timeout };
        let login = Arc::new(Login::new(context.connection, access)?);
        Ok(Self {
            script: Script::new(APPEND_AND_PUBLISH),
            commands: Line::new(Arc::clone(&login), PATIENCE),
            probes: Line::new(Arc::clone(&login), 1),
            probe_key: format!("{}:{}", config.key_beside_the_stream("probe"), context.instance),
            unanswered_probe: AtomicBool::new(false),
            pool: Pool::new(Arc::new(Connector(login)), context)?,
            connect_timeout,
            largest_text: AtomicUsize::new(usize::MAX),
            config,
        })
    }

    /// Asks for the limit beyond which the server resets the connection. That would look like an
    /// outage, so texts that are too large are refused here.
    async fn ask_largest_text(&self) -> Result<(), Error> {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("proto-max-bulk-len");
        match self.commands.query::<HashMap<String, usize>>(&command).await {
            Ok(answer) => {
                let largest = answer.values().next().copied().unwrap_or(usize::MAX);
                self.largest_text.store(largest, Ordering::Relaxed);
                Ok(())
            }
            // Managed servers hide the limit, and accept as much as others: far more than any
            // request has.
            Err(error) if error.outcome_unknown() => Err(error),
            Err(_) => Ok(()),
        }
    }

    fn checked<T: AsRef<str>>(&self, text: T) -> Result<T, Error> {
        let largest = self.largest_text.load(Ordering::Relaxed);
        if text.as_ref().len() <= largest {
            return Ok(text);
        }
        let message = format!(
            "the event has {} bytes, the server takes {largest} (proto-max-bulk-len)",
            text.as_ref().len()
        );
        Err(Error::new(ErrorKind::InvalidInput, message))
    }

    fn append(&self, event: &Event) -> Result<Cmd, Error> {
        let mut command = redis::cmd("XADD");
        command.arg(&self.config.stream).arg("MAXLEN").arg("~").arg(self.config.max_events);
        command.arg("*").arg(FIELD).arg(self.checked(&**event.document())?);
        Ok(command)
    }

    async fn publish_to_agentarea(&self, events: &[&Event]) -> Result<Vec<String>, Error> {
        let mut call = self.script.key(&self.config.stream);
        call.arg(self.config.max_events);
        for event in events {
            call.arg(self.checked(&**event.document())?).arg(&event.kind);
            call.arg(self.checked(envelope(event)?)?);
        }
        self.commands
            .call(|mut connection| async move { call.invoke_async(&mut connection).await })
            .await
    }

    /// Returns one page of the stream after `place`, waiting for it up to `wait`.
    async fn blocking_page(
        &self,
        place: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Page, Error> {
        let mut connection = Exclusive::take(&self.pool, wait).await?;
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(limit);
        // Rounded up, because 0 would wait forever.
        let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        if millis > 0 {
            command.arg("BLOCK").arg(millis);
        }
        command.arg("STREAMS").arg(&self.config.stream).arg(place.to_string());
        let answer = connection.query::<Option<Vec<(String, Entries)>>>(&command);
        let Ok(answer) = timeout(wait + self.connect_timeout, answer).await else {
            let message = "a blocking read was not answered in time";
            return Err(Error::new(ErrorKind::Timeout, message));
        };
        let streams = answer?.unwrap_or_default();
        connection.give_back();
        Ok(Page::of(streams.into_iter().flat_map(|(_, entries)| entries)))
    }
}

#[async_trait]
impl Backend for RedisBroker {
    async fn probe(&self) -> Result<(), Error> {
        let after_outage = self.unanswered_probe.swap(true, Ordering::Relaxed);
        let sent = time::now().to_string();
        let mut pipeline = redis::pipe();
        let key = &self.probe_key;
        pipeline.cmd("SET").arg(key).arg(&sent).arg("EX").arg(PROBE_KEY_SECONDS).ignore();
        pipeline.cmd("GET").arg(key);
        let (read,): (Option<String>,) = self
            .probes
            .call(|mut connection| async move { pipeline.query_async(&mut connection).await })
            .await?;
        if read.as_ref() != Some(&sent) {
            let message = "the server has lost what the probe has just written";
            let remedy = "set maxmemory-policy = noeviction, and check that the address leads to one \
                          server only";
            return Err(Error::new(ErrorKind::Unavailable, message).with_remedy(remedy));
        }
        self.unanswered_probe.store(false, Ordering::Relaxed);
        if after_outage {
            // A connection from before the outage may be dead, which only calls that wait in vain
            // would show.
            self.commands.renew();
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close();
        self.commands.close();
        self.probes.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

#[async_trait]
impl EventBroker for RedisBroker {
    async fn publish(&self, events: &[&Event]) -> Result<Vec<Position>, Error> {
        let places = match (self.config.wire, events) {
            (_, []) => Vec::new(),
            (Wire::AgentArea, events) => self.publish_to_agentarea(events).await?,
            (Wire::CloudEvents, [event]) => vec![self.commands.query(&self.append(event)?).await?],
            (Wire::CloudEvents, events) => {
                let mut transaction = redis::pipe();
                transaction.atomic();
                for event in events {
                    transaction.add_command(self.append(event)?);
                }
                self.commands
                    .call(|mut connection| async move {
                        transaction.query_async::<Vec<String>>(&mut connection).await
                    })
                    .await?
            }
        };
        places.iter().map(|place| parse_place(place)).collect()
    }

    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
        let mut looks = redis::pipe();
        for place in places {
            let look = looks.cmd("XRANGE").arg(&self.config.stream);
            look.arg(place.to_string()).arg(place.to_string());
        }
        let found: Vec<Entries> = self
            .commands
            .call(|mut connection| async move { looks.query_async(&mut connection).await })
            .await?;
        let missing = places.iter().zip(found).filter(|(_, entries)| entries.is_empty());
        let missing: Vec<Position> = missing.map(|(place, _)| *place).collect();
        if missing.is_empty() {
            return Ok(missing);
        }
        // Queried afterwards, because the stream may be trimmed at any moment.
        let range = self.range().await?;
        Ok(missing.into_iter().filter(|place| *place > range.complete_after).collect())
    }

    async fn range(&self) -> Result<Range, Error> {
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(&self.config.stream);
        let asked = self.commands.query::<HashMap<String, redis::Value>>(&command).await;
        let mut information = match asked {
            Err(error) if error.kind() == ErrorKind::Missing => {
                return Ok(Range { complete_after: Position::START, newest: Position::START });
            }
            asked => asked?,
        };
        let mut take = |key: &str| information.remove(key).unwrap_or(redis::Value::Nil);
        let newest = redis::from_redis_value::<String>(take("last-generated-id"));
        let newest = parse_place(&newest.unwrap_or_default())?;
        // Redis 7 counts all entries ever added, so a stream that has never been trimmed is known
        // to be complete. `max-deleted-entry-id` does not show that, because trimming leaves it
        // unchanged. After a flush the count restarts, and no record of the previous stream
        // remains.
        let mut count = |key: &str| redis::from_redis_value::<u64>(take(key)).ok();
        let (length, added) = (count("length"), count("entries-added"));
        if length.is_some() && length == added {
            return Ok(Range { complete_after: Position::START, newest });
        }
        let first = redis::from_redis_value::<Option<(String, redis::Value)>>(take("first-entry"));
        let first = first.ok().flatten().and_then(|(id, _)| id.parse().ok());
        Ok(Range { complete_after: first.map_or(newest, Position::before), newest })
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<StoredEvent>, Error> {
        let mut found = Vec::new();
        let mut place = after;
        // A page can consist of entries from other writers that are not events, so only a short
        // page means the end.
        while found.len() < limit {
            let mut command = redis::cmd("XRANGE");
            command.arg(&self.config.stream).arg(format!("({place}")).arg("+");
            command.arg("COUNT").arg(limit);
            let entries: Entries = self.commands.query(&command).await?;
            let whole = entries.len() == limit;
            let page = Page::of(entries);
            found.extend(page.events);
            match page.end {
                Some(end) if whole => place = end,
                _ => break,
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn wait(
        &self,
        after: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<StoredEvent>, Error> {
        let deadline = Instant::now() + wait;
        let mut place = after;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let page = self.blocking_page(place, limit, left).await?;
            if !page.events.is_empty() || left.is_zero() {
                return Ok(page.events);
            }
            place = page.end.unwrap_or(place);
        }
    }
}

#[cfg(test)]
mod tests;
