//! Delivers accepted events to the broker.
//!
//! A process claims lanes of the outbox and delivers the events that wait in them, in the order of
//! acceptance, one batch at a time. A failed batch is retried as a whole, so an event can be
//! delivered twice, with the same id, but never after a later one of its subject. Marks carry the
//! fencing number of the claim: a process that lost a lane, for example while it was paused, marks
//! nothing.

mod loss;
mod refusals;
mod wakeups;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::wakeups::Wakeups;
use super::super::depth::{Depth, Depths};
use crate::{
    backends::{
        database::{Database, Lane, PendingEvent, PendingEvents},
        event_broker::EventBroker,
    },
    config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        backlog::Waiting,
        backoff::Backoff,
        events::{Event, Position},
        lanes::{Lanes, Slots},
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// The most bytes that are read for one batch, unless its first event alone has more. In memory
/// they take up to a hundred times as much, when they consist of small objects.
const BATCH_BYTES: i64 = 1 << 20;
/// Pauses after failed batches. Short, because an open breaker makes an attempt cheap.
const RETRY: Backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_secs(1));
/// How soon a process without lanes asks for some again: the last one of them may just have been
/// released for a change of their number.
const CLAIM_AGAIN: Duration = Duration::from_millis(500);
/// The pause before this process listens to others again.
const HEAR_AGAIN: Duration = Duration::from_secs(1);

/// The outbox as the handlers see it, and the task that empties it.
#[derive(Clone, Debug)]
pub struct Relay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    owner: Arc<str>,
    database: Client<dyn Database>,
    broker: Client<dyn EventBroker>,
    config: config::Outbox,
    wakeups: Wakeups,
    depths: Arc<Depths>,
    /// True once the number of lanes that this process wants is stored.
    wanted: AtomicBool,
}

/// The lanes that this process holds, and the time for which it may rely on them.
#[derive(Debug, Default)]
struct Claims {
    lanes: Vec<Lane>,
    made: Option<Instant>,
    /// The places of events delivered in these lanes, by which a loss is noticed.
    places: Vec<Position>,
    /// The time at which they were last looked for.
    looked: Option<Instant>,
    /// True when the last batch failed, and the broker has not been reached since.
    failed: bool,
}

impl Relay {
    /// Delivers nothing before [`Relay::start`]. `owner` identifies this process.
    #[must_use]
    pub fn new(
        owner: Arc<str>,
        database: Client<dyn Database>,
        broker: Client<dyn EventBroker>,
        config: config::Outbox,
        metrics: Arc<Metrics>,
    ) -> Self {
        let depths = Depths::new(Arc::clone(&owner), database.clone(), &config, metrics);
        Self(Arc::new(Shared {
            owner,
            database,
            broker,
            config,
            wakeups: Wakeups::default(),
            wanted: AtomicBool::new(false),
            depths: Arc::new(depths),
        }))
    }

    /// Refuses further events of clients while too many wait.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn admit(&self) -> Result<(), Error> {
        self.0.depths.clients.admit()
    }

    /// Refuses further executions while too many events about executions wait.
    ///
    /// # Errors
    /// `Overloaded`.
    pub(in super::super) fn admit_execution(&self) -> Result<(), Error> {
        self.0.depths.lifecycle.admit()
    }

    /// The executions that wait.
    pub(in super::super) fn executions(&self) -> Depth {
        self.0.depths.executions.clone()
    }

    /// Records that this many events of clients, in these slots, were accepted.
    pub fn accepted(&self, events: usize, slots: &Slots) {
        self.0.depths.clients.accepted(events);
        self.0.wakeups.accepted(slots);
    }

    /// Records that this many events about an execution, all in this slot, were accepted.
    pub(in super::super) fn announced(&self, events: usize, slot: i32) {
        self.0.depths.lifecycle.accepted(events);
        self.0.wakeups.accepted(&Slots::from_iter([slot]));
    }

    /// Records that a dead letter waits for delivery again.
    pub(in super::super) fn redriven(&self) {
        self.0.wait_again(1);
        self.0.wakeups.accepted(&Slots::ALL);
    }

    /// The waiting events.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        self.0.depths.events()
    }

    /// Sets the metrics of the waiting work to the present.
    pub fn collect(&self) {
        self.0.depths.show();
    }

    /// Starts delivery, until `stop`. Returns the task that shutdown waits for.
    pub fn start(&self, tasks: &Tasks, stop: &CancellationToken) -> JoinHandle<()> {
        tasks.keep_until("outbox_count", stop, &self.0.depths, Depths::keep_current);
        tasks.keep_until("event_wakeups", stop, &self.0, Shared::tell_others);
        tasks.keep_until("event_listener", stop, &self.0, Shared::hear_others);
        tasks.keep("event_relay", stop, &self.0, Shared::deliver)
    }
}

impl Shared {
    /// Delivers until `stop`, then releases the lanes to other processes.
    async fn deliver(self: Arc<Self>, stop: CancellationToken) {
        self.relay(&stop).await;
        self.wakeups.hold(None);
        if let Err(error) = self.database.release_lanes(&self.owner).await {
            tracing::debug!(%error, "the lanes of the outbox cannot be given back, claims expire");
        }
    }

    /// Counts events of unknown kind, until the next count, as events of either.
    fn wait_again(&self, events: usize) {
        self.depths.clients.accepted(events);
        self.depths.lifecycle.may_wait(events);
    }

    /// Ends between two batches, so that delivered events are marked.
    async fn relay(&self, stop: &CancellationToken) {
        let mut claims = Claims::default();
        let mut failures = 0_u32;
        while !stop.is_cancelled() {
            let pause = match self.hand_over_batch(&mut claims).await {
                Ok(0) => {
                    failures = 0;
                    self.config.poll_interval
                }
                Ok(_) => {
                    failures = 0;
                    continue;
                }
                // Outages are logged by the probes of the connection that is down.
                Err(error) => {
                    tracing::debug!(%error, "accepted events cannot be handed over");
                    claims.looked = None;
                    claims.failed = true;
                    failures += 1;
                    RETRY.pause_after(failures)
                }
            };
            let woken = async {
                // After a failure, new work is no reason to hurry.
                if failures > 0 {
                    sleep(pause).await;
                } else {
                    let _woken = timeout(pause, self.wakeups.woken()).await.is_ok();
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = woken => {}
            }
        }
    }

    /// Delivers the events that have waited longest. Returns the number of events that were dealt
    /// with, or must be looked at again.
    async fn hand_over_batch(&self, claims: &mut Claims) -> Result<usize, Error> {
        self.claim(claims).await?;
        if claims.lanes.is_empty() {
            return Ok(0);
        }
        // Nothing is read for a broker that is down.
        if claims.failed {
            self.reach_broker().await?;
            claims.failed = false;
        }
        // After a failure, lost events come before new ones.
        if claims.looked.is_none() && self.look_for_loss(claims, None).await? {
            return Ok(1);
        }
        let (held, most) = (&claims.lanes, self.config.batch);
        let PendingEvents { readable: batch, unreadable } =
            self.database.pending_events(held, most, BATCH_BYTES).await?;
        if !unreadable.is_empty() {
            self.set_aside(held, &unreadable).await?;
        }
        if batch.is_empty() {
            return match unreadable.len() {
                0 => self.look_for_loss(claims, None).await.map(usize::from),
                set_aside => Ok(set_aside),
            };
        }
        let events: Vec<&PendingEvent> = batch.iter().collect();
        match self.publish(&events).await {
            Ok(places) => {
                // Before the mark: once these events are marked, the next process looks for their
                // places, and nobody would notice a loss of earlier ones.
                self.look_for_loss(claims, places.last().copied()).await?;
                self.mark(&claims.lanes, &events, &places).await
            }
            // The broker refuses one of the events as such; the others must not wait for it.
            Err(error) if error.kind().refuses_call() => {
                self.hand_over_in_parts(claims, &batch).await
            }
            Err(error) => Err(error),
        }
    }

    /// Sends the broker a small request, which not every user is allowed to make.
    async fn reach_broker(&self) -> Result<(), Error> {
        match self.broker.unretried().range().await {
            Err(error) if error.kind() != ErrorKind::Forbidden => Err(error),
            _ => Ok(()),
        }
    }

    /// Claims lanes, or renews the claims when a third of their time has passed. A process that was
    /// paused for longer finds them expired before it delivers anything. One that is cut off from
    /// the broker lets them expire.
    async fn claim(&self, claims: &mut Claims) -> Result<(), Error> {
        let younger_than = |limit| claims.made.is_some_and(|made| made.elapsed() < limit);
        let renewal = self.config.lease / 3;
        let next = if claims.lanes.is_empty() { renewal.min(CLAIM_AGAIN) } else { renewal };
        if younger_than(next) {
            return Ok(());
        }
        if self.broker.is_out() {
            // It keeps trying with the lanes it holds, but no longer than this, as others may reach
            // the broker.
            if younger_than(self.config.lease * 2 / 3) {
                return Ok(());
            }
            *claims = Claims::default();
            self.wakeups.hold(None);
            let message = "the event broker is out, and the lanes are left to others";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        // Taken before the database starts the lease, so that the lease ends here first.
        let made = Instant::now();
        let (owner, lease) = (&*self.owner, self.config.lease);
        self.want_lanes().await?;
        let lanes = self.database.claim_lanes(owner, lease).await?;
        if lanes != claims.lanes {
            let places = self.database.newest_places(&lanes).await?;
            *claims = Claims { lanes, places, failed: claims.failed, ..Claims::default() };
        }
        claims.made = Some(made);
        self.wakeups.hold(Some(Lane::slots(&claims.lanes)));
        Ok(())
    }

    /// Stores the configured number of lanes, once: the process that started last determines it.
    async fn want_lanes(&self) -> Result<(), Error> {
        if self.wanted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let lanes = Lanes::new(self.config.lanes).unwrap_or(Lanes::SIXTEEN);
        let before = self.database.want_lanes(lanes).await?;
        if before != lanes {
            tracing::info!(
                before = before.number(),
                lanes = lanes.number(),
                "all instances are to divide the outbox into outbox.lanes of this one"
            );
        }
        self.wanted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Events accepted while others are notified are announced by the next round, all at once.
    async fn tell_others(self: Arc<Self>) {
        loop {
            let news = self.wakeups.news().await;
            let news = &news;
            let told = self.database.wake_others(news).await;
            if let Err(error) = told {
                tracing::debug!(%error, "others are not told of accepted events, they look by themselves");
            }
        }
    }

    async fn hear_others(self: Arc<Self>) {
        loop {
            let heard = async {
                let lease = self.database.lease().await?;
                tokio::select! {
                    biased;
                    woken = lease.woken() => woken,
                    // The next round listens to the backend's successor.
                    () = lease.retired() => Ok(Slots::ALL),
                }
            };
            match heard.await {
                Ok(slots) => self.wakeups.heard(&slots),
                Err(error) => {
                    tracing::debug!(%error, "other instances cannot be heard");
                    sleep(HEAR_AGAIN).await;
                }
            }
        }
    }

    async fn publish(&self, batch: &[&PendingEvent]) -> Result<Vec<Position>, Error> {
        let events: Vec<&Event> = batch.iter().map(|pending| &pending.event).collect();
        let events = &events;
        self.broker.unretried().publish(events).await
    }

    async fn mark(
        &self,
        held: &[Lane],
        batch: &[&PendingEvent],
        places: &[Position],
    ) -> Result<usize, Error> {
        let owner = &*self.owner;
        let seqs = batch.iter().map(|pending| pending.seq);
        let events: Vec<(i64, Position)> = seqs.zip(places.iter().copied()).collect();
        let events = &events;
        let begun = Instant::now();
        let marked = self.database.mark_delivered(owner, held, events).await?;
        if marked == batch.len() {
            let about_executions =
                batch.iter().filter(|pending| pending.event.is_lifecycle()).count();
            self.depths.lifecycle.delivered(begun, about_executions);
            self.depths.clients.delivered(begun, marked - about_executions);
        } else {
            self.depths.clients.left(marked);
        }
        Ok(marked)
    }
}
