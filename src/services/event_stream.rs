//! The event stream: one upstream subscription, shared by all clients of an instance.
//!
//! The upstream reads the broker into a ring that is bounded in events and bytes; each client reads
//! the ring at its own pace. A client that resumes first reads what the ring no longer has from
//! the broker. A client that falls behind the ring is told so by a gap and ends: it comes back
//! with the id of the last event it saw.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use super::sse::Filter;
use super::sse::{Frame, Gap};
use crate::{
    backends::event_broker::EventBroker,
    config::EventStream as Config,
    connection::Client,
    error::{Error, ErrorKind},
    model::events::{Position, Range},
    telemetry::metrics::Metrics,
};

/// Events read from the broker at once.
const PAGE: usize = 256;
/// How long one blocking read of the upstream lasts.
const UPSTREAM_WAIT: Duration = Duration::from_secs(5);
/// Longest pause before a broken upstream is made again.
const UPSTREAM_BACKOFF: Duration = Duration::from_secs(2);
/// Text handed to a client at once, so that a client far behind gets it in steps.
const CHUNK: usize = 64 << 10;

#[derive(Debug)]
struct Ring {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    complete_after: Position,
    /// Counts the beginnings.
    generation: u64,
    clients: usize,
    upstream: bool,
}

/// The shared subscription of an instance.
#[derive(Clone, Debug)]
pub struct EventStreams(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    broker: Client<dyn EventBroker>,
    config: Config,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    ring: Mutex<Ring>,
    newest: watch::Sender<Position>,
}

impl EventStreams {
    /// No upstream is made before the first client comes. `stop` ends all clients.
    #[must_use]
    pub fn new(
        broker: Client<dyn EventBroker>,
        config: Config,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let ring = Ring {
            frames: VecDeque::new(),
            bytes: 0,
            complete_after: Position::START,
            generation: 0,
            clients: 0,
            upstream: false,
        };
        Self(Arc::new(Shared {
            broker,
            config,
            metrics,
            tasks,
            stop,
            ring: Mutex::new(ring),
            newest: watch::Sender::new(Position::START),
        }))
    }

    /// Subscribes a client. The subscription stands when this returns.
    ///
    /// # Errors
    /// When the broker cannot be asked, or there are too many clients.
    pub async fn subscribe(
        &self,
        filter: Filter,
        last_event: Option<Position>,
    ) -> Result<Follower, Error> {
        // Counted first, so that the upstream does not end between here and the return.
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
        let seen = last_event.unwrap_or_default();
        Ok(Follower {
            newest: self.0.newest.subscribe(),
            generation: self.0.ring.lock().generation,
            shared: Arc::clone(&self.0),
            _place: place,
            filter,
            at,
            gap: gap.map(|gap| gap.text(seen, range.complete_after)),
            resuming: last_event.is_some(),
            ended: false,
        })
    }
}

/// A client's place among those that are counted.
#[derive(Debug)]
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Result<Self, Error> {
        let mut ring = shared.ring.lock();
        if ring.clients >= shared.config.max_clients {
            return Err(Error::new(ErrorKind::Overloaded, "too many clients of the event stream")
                .with_retry_after(Duration::from_secs(5)));
        }
        ring.clients += 1;
        shared.metrics.event_stream_clients.inc();
        Ok(Self(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.ring.lock().clients -= 1;
        self.0.metrics.event_stream_clients.dec();
    }
}

impl Shared {
    async fn range(&self) -> Result<Range, Error> {
        self.broker.range().await.map_err(Error::without_effect)
    }

    /// Why a client cannot go on after the event it saw last, if it cannot.
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
        // A broker that lost its data and began anew has later places, but not this one.
        let before = seen.before();
        let found = self.broker.read(before, 1).await?;
        let still_there = found.first().is_some_and(|event| event.position == seen);
        Ok((!still_there).then_some(Gap::Unknown))
    }

    fn ensure_upstream(self: &Arc<Self>, range: Range) {
        let mut ring = self.ring.lock();
        if ring.upstream {
            return;
        }
        ring.upstream = true;
        ring.restart(range.newest);
        self.newest.send_replace(range.newest);
        drop(ring);
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                () = shared.stop.cancelled() => {}
                () = shared.read_upstream(range.newest) => {}
            }
        });
    }

    /// Reads the broker for as long as there are clients; made again for ever when it breaks.
    async fn read_upstream(&self, mut at: Position) {
        let mut failures = 0_u32;
        loop {
            if !self.has_clients() {
                return;
            }
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
                    let pause = Duration::from_millis(50) * 2_u32.saturating_pow(failures.min(10));
                    sleep(pause.min(UPSTREAM_BACKOFF)).await;
                }
            }
        }
    }

    async fn read_once(&self, at: Position, check_range: bool) -> Result<Position, Error> {
        if check_range {
            let range = self.range().await?;
            if !range.can_resume_after(at) {
                tracing::warn!("events were lost in the broker, followers are told of the gap");
                self.ring.lock().restart(range.complete_after);
                self.newest.send_replace(range.complete_after);
                return Ok(range.complete_after);
            }
        }
        let lease = self.broker.lease().await?;
        let events = tokio::select! {
            events = lease.wait(at, PAGE, UPSTREAM_WAIT) => events?,
            // A replaced backend is let go at once; the next round reads its successor.
            () = lease.retired() => Vec::new(),
        };
        let Some(last) = events.last().map(|event| event.position) else { return Ok(at) };
        // The broker may have dropped some that were not read yet.
        let range = self.range().await?;
        if range.complete_after > at {
            tracing::warn!("the broker drops events sooner than they are read");
            self.ring.lock().restart(range.complete_after);
            self.newest.send_replace(range.complete_after);
            return Ok(range.complete_after);
        }
        let frames: Vec<_> = events.iter().map(|event| Arc::new(Frame::new(event))).collect();
        self.ring.lock().append(frames, &self.config);
        self.newest.send_replace(last);
        Ok(last)
    }

    /// False ends the upstream; decided under the lock, so that a client that comes now starts
    /// another one.
    fn has_clients(&self) -> bool {
        let mut ring = self.ring.lock();
        ring.upstream = ring.clients > 0;
        ring.upstream
    }
}

impl Ring {
    /// Begins anew at `at`; whoever read what was before has a gap.
    fn restart(&mut self, at: Position) {
        self.generation += 1;
        self.frames.clear();
        self.bytes = 0;
        self.complete_after = at;
    }

    fn append(&mut self, frames: Vec<Arc<Frame>>, config: &Config) {
        for frame in frames {
            self.bytes += frame.text.len();
            self.frames.push_back(frame);
        }
        while self.frames.len() > config.buffer_events || self.bytes > config.buffer_bytes.0 {
            let Some(dropped) = self.frames.pop_front() else { break };
            self.bytes -= dropped.text.len();
            self.complete_after = dropped.position;
        }
    }
}

/// What the ring has for a client.
enum Found {
    /// Text, and the place it leads to.
    Text(Vec<Bytes>, Position),
    /// The ring begins after this place only.
    Behind(Position),
    /// The broker lost events, and what there is begins after this place.
    Lost(Position),
}

/// One client of the event stream.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    _place: Place,
    filter: Filter,
    at: Position,
    gap: Option<Bytes>,
    newest: watch::Receiver<Position>,
    generation: u64,
    /// Still reading history; being behind the ring is no fault of the client.
    resuming: bool,
    ended: bool,
}

impl Follower {
    /// The next piece of text to send; none when the stream ends.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(gap) = self.gap.take() {
            return Some(gap);
        }
        let quiet_until = Instant::now() + self.shared.config.keep_alive;
        loop {
            if self.shared.stop.is_cancelled() {
                self.ended = true;
                // Tells browsers to come back soon, to another instance.
                return Some(Bytes::from_static(b"retry: 1000\n\n"));
            }
            self.newest.mark_unchanged();
            match self.find() {
                Found::Text(text, at) => {
                    self.at = at;
                    self.resuming = false;
                    if !text.is_empty() {
                        return Some(concat(&text));
                    }
                }
                Found::Behind(_) if self.resuming => match self.history().await {
                    Ok(Some(text)) => return Some(text),
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::debug!(%error, "a resuming client ends");
                        self.ended = true;
                        return None;
                    }
                },
                Found::Behind(complete_after) => {
                    self.ended = true;
                    return Some(Gap::Slow.text(self.at, complete_after));
                }
                Found::Lost(complete_after) => {
                    self.ended = true;
                    return Some(Gap::Unknown.text(self.at, complete_after));
                }
            }
            tokio::select! {
                told = timeout_at(quiet_until, self.newest.changed()) => {
                    if told.is_err() {
                        return Some(Bytes::from_static(b": keep-alive\n\n"));
                    }
                }
                () = self.shared.stop.cancelled() => {}
            }
        }
    }

    fn find(&self) -> Found {
        let ring = self.shared.ring.lock();
        if self.generation != ring.generation {
            return Found::Lost(ring.complete_after);
        }
        if self.at < ring.complete_after {
            return Found::Behind(ring.complete_after);
        }
        let from = ring.frames.partition_point(|frame| frame.position <= self.at);
        let (mut text, mut size, mut at) = (Vec::new(), 0, self.at);
        for frame in ring.frames.range(from..) {
            at = frame.position;
            if self.filter.admits(&frame.kind, frame.subject.as_deref()) {
                size += frame.text.len();
                text.push(frame.text.clone());
                if size >= CHUNK {
                    break;
                }
            }
        }
        Found::Text(text, at)
    }

    /// A page of what the ring no longer has. None when there is nothing in it for this client.
    async fn history(&mut self) -> Result<Option<Bytes>, Error> {
        let at = self.at;
        let page = self.shared.broker.read(at, PAGE).await?;
        // Asked after the page: what was dropped before it was read is missing in it.
        let range = self.shared.range().await?;
        if range.complete_after > at {
            self.ended = true;
            return Ok(Some(Gap::Expired.text(at, range.complete_after)));
        }
        let Some(last) = page.last().map(|event| event.position) else {
            // The broker has nothing more: what the ring lacks is before its beginning.
            self.at = self.at.max(self.shared.ring.lock().complete_after);
            return Ok(None);
        };
        self.at = last;
        let frames = page.iter().map(Frame::new);
        let text: Vec<Bytes> = frames
            .filter(|frame| self.filter.admits(&frame.kind, frame.subject.as_deref()))
            .map(|frame| frame.text)
            .collect();
        Ok((!text.is_empty()).then(|| concat(&text)))
    }
}

fn concat(parts: &[Bytes]) -> Bytes {
    match parts {
        [only] => only.clone(),
        parts => parts.concat().into(),
    }
}
