//! The event stream: one upstream subscription, shared by all clients of an instance.
//!
//! The upstream reads the broker into a ring that is bounded in events and bytes; each client reads
//! the ring at its own pace. A client that resumes first reads from the broker the events that the
//! ring no longer has. A client that falls behind the ring receives a gap, and its stream ends: it
//! reconnects with the id of the last event it saw.

mod ring;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::ring::Ring;
pub use self::ring::{Filter, Streamed};
use crate::{
    backends::event_broker::EventBroker,
    config::EventStream as Config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        backoff::Backoff,
        events::{Position, Range},
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// Events read from the broker at once.
const PAGE: usize = 256;
/// The duration of one blocking read of the upstream.
const UPSTREAM_WAIT: Duration = Duration::from_secs(5);
/// Pauses before a broken upstream is read again.
const RETRY: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(2));

/// The shared subscription of an instance.
#[derive(Clone, Debug)]
pub struct EventStreams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    broker: Client<dyn EventBroker>,
    config: Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    ring: Mutex<Ring>,
    newest: watch::Sender<Position>,
    /// Notified when the first follower arrives.
    wanted: Notify,
}

/// The next message for a follower.
#[derive(Clone, Debug)]
pub enum Next {
    /// Events, in their order.
    Events(Vec<Arc<Streamed>>),
    /// Some events cannot be delivered; the stream ends, or continues after `resumes_after`.
    Missed {
        /// The reason.
        gap: Gap,
        /// The last event that the follower has seen.
        after: Position,
        /// The place after which it can continue.
        resumes_after: Position,
    },
    /// Nothing has happened for a while.
    Quiet,
    /// The instance stops; the stream ends.
    Stopping,
}

/// The reason why a follower cannot receive every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The events after its last one are no longer kept.
    Expired,
    /// Its last event is unknown, for example after the broker lost its data.
    Unknown,
    /// It read more slowly than events arrived.
    Slow,
}

impl EventStreams {
    /// Reads no upstream before [`EventStreams::start`], nor while there are no followers. `stop`
    /// ends all followers.
    #[must_use]
    pub fn new(
        broker: Client<dyn EventBroker>,
        config: Config,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(Shared {
            broker,
            config,
            metrics,
            stop,
            ring: Mutex::default(),
            newest: watch::Sender::new(Position::START),
            wanted: Notify::new(),
        }))
    }

    /// Starts to read the broker whenever there are followers.
    pub fn start(&self, tasks: &Tasks) -> JoinHandle<()> {
        tasks.keep_until("event_stream", &self.0.stop, &self.0, Shared::read_while_wanted)
    }

    /// Subscribes a follower. The subscription is active when this returns.
    ///
    /// # Errors
    /// When the broker cannot be queried, or there are too many followers.
    pub async fn subscribe(
        &self,
        filter: Filter,
        last_event: Option<Position>,
    ) -> Result<Follower, Error> {
        // Counted first, so that the upstream does not end before this returns.
        let place = Place::take(&self.0)?;
        let range = self.0.range().await?;
        self.0.ensure_upstream(range);
        let gap = match last_event {
            Some(seen) => self.0.gap_after(seen, range).await?,
            None => None,
        };
        let at = match (last_event, gap) {
            (None, _) => range.newest,
            (Some(seen), None) => seen,
            (Some(_), Some(_)) => range.complete_after,
        };
        let (after, resumes_after) = (last_event.unwrap_or_default(), range.complete_after);
        Ok(Follower {
            newest: self.0.newest.subscribe(),
            generation: self.0.ring.lock().generation(),
            shared: Arc::clone(&self.0),
            _place: place,
            filter,
            at,
            missed: gap.map(|gap| Next::Missed { gap, after, resumes_after }),
            resuming: last_event.is_some(),
            ended: false,
        })
    }
}

/// One of the limited number of places for followers.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Result<Self, Error> {
        if !shared.ring.lock().take_place(shared.config.max_clients) {
            return Err(Error::new(ErrorKind::Overloaded, "too many clients of the event stream")
                .with_retry_after(Duration::from_secs(5)));
        }
        shared.metrics.event_stream_clients.inc();
        Ok(Self(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ring.lock().give_place_back();
        self.0.metrics.event_stream_clients.dec();
    }
}

impl Shared {
    async fn range(&self) -> Result<Range, Error> {
        self.broker.range().await.map_err(Error::without_effect)
    }

    /// The reason why a follower cannot continue after the event it saw last, if there is one.
    async fn gap_after(&self, seen: Position, range: Range) -> Result<Option<Gap>, Error> {
        if seen > range.newest {
            return Ok(Some(Gap::Unknown));
        }
        if seen < range.complete_after {
            return Ok(Some(Gap::Expired));
        }
        if seen == range.complete_after && seen != Position::START {
            return Ok(None);
        }
        // A broker that lost its data and started afresh has later places, but not this one.
        let found = self.broker.read(seen.before(), 1).await?;
        let still_there = found.first().is_some_and(|event| event.position == seen);
        Ok((!still_there).then_some(Gap::Unknown))
    }

    fn ensure_upstream(&self, range: Range) {
        if self.ring.lock().open(range.newest) {
            self.newest.send_replace(range.newest);
            self.wanted.notify_one();
        }
    }

    /// Reads the broker whenever there are followers.
    async fn read_while_wanted(self: Arc<Self>) {
        loop {
            // An interrupted upstream continues where it was.
            let Some(at) = self.ring.lock().read_to() else {
                self.wanted.notified().await;
                continue;
            };
            self.read_upstream(at).await;
        }
    }

    /// Reads while there are followers, and retries whenever the upstream breaks.
    async fn read_upstream(&self, mut at: Position) {
        let mut failures = 0_u32;
        // Decided under the lock, so that a follower that arrives now has the upstream opened
        // again.
        while self.ring.lock().is_wanted() {
            match self.read_once(at, failures > 0).await {
                Ok(last) => {
                    if failures > 0 {
                        tracing::info!("the event stream is read again");
                    }
                    failures = 0;
                    at = last;
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "the event stream cannot be read");
                    }
                    failures += 1;
                    sleep(RETRY.pause_after(failures)).await;
                }
            }
        }
    }

    async fn read_once(&self, at: Position, check_range: bool) -> Result<Position, Error> {
        if check_range {
            let range = self.range().await?;
            if !range.can_resume_after(at) {
                tracing::warn!("events were lost in the broker, followers are told of the gap");
                return Ok(self.restart(range.complete_after));
            }
        }
        let lease = self.broker.lease().await?;
        let events = tokio::select! {
            events = lease.wait(at, PAGE, UPSTREAM_WAIT) => events?,
            // A replaced backend is released at once; the next round reads its successor.
            () = lease.retired() => Vec::new(),
        };
        let Some(last) = events.last().map(|event| event.position) else { return Ok(at) };
        // The broker may have dropped events that were not read yet.
        let range = self.range().await?;
        if range.complete_after > at {
            tracing::warn!("the broker drops events sooner than they are read");
            return Ok(self.restart(range.complete_after));
        }
        let events = events.into_iter().map(|event| Arc::new(Streamed::new(event))).collect();
        self.ring.lock().append(events, &self.config);
        self.newest.send_replace(last);
        Ok(last)
    }

    fn restart(&self, at: Position) -> Position {
        self.ring.lock().restart(at);
        self.newest.send_replace(at);
        at
    }
}

/// One follower of the event stream.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    _place: Place,
    filter: Filter,
    at: Position,
    missed: Option<Next>,
    newest: watch::Receiver<Position>,
    generation: u64,
    /// True while it reads history, when being behind the ring is not its fault.
    resuming: bool,
    ended: bool,
}

impl Follower {
    /// The next message; `None` when the stream ends.
    pub async fn next(&mut self) -> Option<Next> {
        if self.ended {
            return None;
        }
        if let Some(missed) = self.missed.take() {
            return Some(missed);
        }
        let quiet_until = Instant::now() + self.shared.config.keep_alive;
        loop {
            if self.shared.stop.is_cancelled() {
                self.ended = true;
                return Some(Next::Stopping);
            }
            self.newest.mark_unchanged();
            match self.find() {
                ring::Found::Events(events, at) => {
                    self.at = at;
                    self.resuming = false;
                    if !events.is_empty() {
                        return Some(Next::Events(events));
                    }
                }
                ring::Found::Behind(_) if self.resuming => match self.history().await {
                    Ok(Some(next)) => return Some(next),
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::debug!(%error, "a resuming client ends");
                        self.ended = true;
                        return None;
                    }
                },
                ring::Found::Behind(resumes_after) => {
                    return Some(self.end(Gap::Slow, resumes_after));
                }
                ring::Found::Lost(resumes_after) => {
                    return Some(self.end(Gap::Unknown, resumes_after));
                }
            }
            tokio::select! {
                told = timeout_at(quiet_until, self.newest.changed()) => {
                    if told.is_err() {
                        return Some(Next::Quiet);
                    }
                }
                () = self.shared.stop.cancelled() => {}
            }
        }
    }

    fn end(&mut self, gap: Gap, resumes_after: Position) -> Next {
        self.ended = true;
        Next::Missed { gap, after: self.at, resumes_after }
    }

    fn find(&self) -> ring::Found {
        self.shared.ring.lock().find(self.generation, self.at, &self.filter)
    }

    /// A page of events that the ring no longer has; `None` when it has none for this follower.
    async fn history(&mut self) -> Result<Option<Next>, Error> {
        let at = self.at;
        let page = self.shared.broker.read(at, PAGE).await?;
        // Queried after the page, which lacks all events that were dropped before it was read.
        let range = self.shared.range().await?;
        if range.complete_after > at {
            return Ok(Some(self.end(Gap::Expired, range.complete_after)));
        }
        let Some(last) = page.last().map(|event| event.position) else {
            // The broker has no more events: those that the ring lacks are before its beginning.
            self.at = self.at.max(self.shared.ring.lock().complete_after());
            return Ok(None);
        };
        self.at = last;
        let events = page.into_iter().map(|event| Arc::new(Streamed::new(event)));
        let events: Vec<_> = events.filter(|event| self.filter.admits(event)).collect();
        Ok((!events.is_empty()).then_some(Next::Events(events)))
    }
}
