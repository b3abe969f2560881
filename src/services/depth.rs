//! The amount of accepted work that waits, and the limits that it must not exceed.
//!
//! One process counts for all and stores what it found; every process reads that, and adds what it
//! has accepted and subtracts what it has delivered since.

mod flow;
mod since;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use self::{flow::Flow, since::Since};
use crate::{
    backends::database::{Database, Role},
    config,
    connection::Client,
    error::{Error, ErrorKind},
    model::backlog::{Backlog, Count, Waiting},
    telemetry::metrics::{Destination, Metrics},
};

/// The role of the process that counts.
const COUNTER: &str = "counter";
/// The time after which a dead counter is replaced.
const LEASE: Duration = Duration::from_secs(5);
/// The interval between looks at the stored count, and between counts unless counting takes long.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Counting may take a twentieth of the time, unless this makes the count too old.
const COUNT_SHARE: u32 = 20;
const OLDEST_COUNT: Duration = Duration::from_secs(5);
/// The age of a stored count after which its counter may have died.
const STALE: Duration = Duration::from_secs(3);
/// The time after which a refused client may retry.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The depth of everything that waits, by limit, and the task that keeps it current.
#[derive(Debug)]
pub(super) struct Depths {
    /// Events of clients.
    pub(super) clients: Depth,
    /// Events about executions, which have a reserve of their own: no other event may keep an
    /// execution from being accepted.
    pub(super) lifecycle: Depth,
    /// Executions.
    pub(super) executions: Depth,
    owner: Arc<str>,
    database: Client<dyn Database>,
    max_rows: i64,
    created: Instant,
    metrics: Arc<Metrics>,
}

/// A count, with the times between which it was made, on the clock of this process.
struct Counted {
    count: Count,
    from: Instant,
    until: Instant,
}

/// The part of this process in counting.
struct Counting {
    role: Role,
    is_ours: bool,
    due: Instant,
}

impl Depths {
    pub(super) fn new(
        owner: Arc<str>,
        database: Client<dyn Database>,
        config: &config::Outbox,
        metrics: Arc<Metrics>,
    ) -> Self {
        let flow = |destination| {
            Arc::new(Flow::new(destination, config.degraded_after, Arc::clone(&metrics)))
        };
        let (events, executions) =
            (flow(Destination::EventBroker), flow(Destination::ExecutionService));
        let depth =
            |waiting, flow: &Arc<Flow>| Depth::new(waiting, config.max_rows, Arc::clone(flow));
        Self {
            clients: depth("as much accepted work waits for the event broker", &events),
            lifecycle: depth("as many events about executions wait for the event broker", &events),
            executions: depth("as much accepted work waits for the execution service", &executions),
            owner,
            database,
            max_rows: config.max_rows,
            created: Instant::now(),
            metrics,
        }
    }

    /// All events, whatever they are about.
    pub(super) fn events(&self) -> Waiting {
        let clients = self.clients.waiting();
        let rows = clients.backlog.rows + self.lifecycle.backlog().rows;
        Waiting { backlog: Backlog { rows, ..clients.backlog }, ..clients }
    }

    /// Sets the metrics to the present.
    pub(super) fn show(&self) {
        let (events, executions) = (self.events(), self.executions.waiting());
        self.clients.flow.show(&events.backlog);
        self.executions.flow.show(&executions.backlog);
        let age = events.counted_ago.unwrap_or_else(|| self.created.elapsed());
        self.metrics.show_outbox_count_age(age);
    }

    /// Tells when work is late.
    fn watch(&self) {
        self.clients.flow.watch(&self.events().backlog);
        self.executions.flow.watch(&self.executions.backlog());
    }

    /// Keeps the depth current, and counts for all while this process has that role. Outages are
    /// logged by the probes of the database.
    pub(super) async fn keep_current(self: Arc<Self>) {
        let role = Role::new(self.database.clone(), COUNTER, Arc::clone(&self.owner), LEASE);
        let mut counting = Counting { role, is_ours: false, due: Instant::now() };
        loop {
            match self.look(&mut counting).await {
                Ok(Some(counted)) => self.apply(&counted),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "accepted work cannot be counted"),
            }
            self.watch();
            sleep(LOOK_EVERY).await;
        }
    }

    /// The newest count, if there is one.
    async fn look(&self, counting: &mut Counting) -> Result<Option<Counted>, Error> {
        let mut stored = None;
        if !counting.is_ours {
            stored = self.stored().await?;
            if stored.as_ref().is_some_and(|counted| counted.from.elapsed() < STALE) {
                return Ok(stored);
            }
        }
        counting.is_ours = counting.role.hold().await?;
        if !counting.is_ours {
            return Ok(stored);
        }
        if Instant::now() < counting.due {
            return Ok(None);
        }
        match self.count().await {
            Ok(counted) => {
                let pause = (counted.until - counted.from) * COUNT_SHARE;
                counting.due = counted.until + pause.clamp(LOOK_EVERY / 2, OLDEST_COUNT);
                Ok(Some(counted))
            }
            Err(error) => {
                // Another process may be able to count.
                counting.is_ours = false;
                counting.role.give_back().await;
                Err(error)
            }
        }
    }

    async fn count(&self) -> Result<Counted, Error> {
        let from = Instant::now();
        let count = self.database.count_waiting(self.max_rows).await?;
        Ok(Counted { count, from, until: Instant::now() })
    }

    /// The count that another process has stored. The database says how old it is, so the clocks of
    /// the two need not agree.
    async fn stored(&self) -> Result<Option<Counted>, Error> {
        let begun = Instant::now();
        let Some(count) = self.database.counted().await? else { return Ok(None) };
        let before = |at: Instant, age| at.checked_sub(age).unwrap_or(self.created);
        let (from, until) =
            (before(begun, count.begun_ago), before(Instant::now(), count.ended_ago));
        Ok(Some(Counted { count, from, until }))
    }

    fn apply(&self, counted: &Counted) {
        let Counted { count, from, until } = counted;
        let events = |rows| Backlog { rows, ..count.events };
        let clients = (count.events.rows - count.lifecycle_events).max(0);
        self.clients.counted(events(clients), *from, *until);
        self.lifecycle.counted(events(count.lifecycle_events), *from, *until);
        self.executions.counted(count.executions, *from, *until);
    }
}

/// The waiting work that has one limit.
#[derive(Clone, Debug)]
pub(super) struct Depth {
    limit: Arc<Limit>,
    flow: Arc<Flow>,
}

#[derive(Debug)]
struct Limit {
    /// Says what waits, in the error.
    waiting: &'static str,
    max_rows: i64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counted: Backlog,
    counted_at: Option<Instant>,
    /// What was accepted and delivered here since.
    accepted: Since,
    delivered: Since,
}

impl State {
    fn rows(&self) -> i64 {
        (self.counted.rows + self.accepted.rows() - self.delivered.rows()).max(0)
    }
}

impl Depth {
    fn new(waiting: &'static str, max_rows: i64, flow: Arc<Flow>) -> Self {
        Self { limit: Arc::new(Limit { waiting, max_rows, state: Mutex::default() }), flow }
    }

    /// Refuses further work while too much waits.
    pub(super) fn admit(&self) -> Result<(), Error> {
        if self.limit.state.lock().rows() < self.limit.max_rows {
            return Ok(());
        }
        let message = format!("{} as outbox.max_rows allows", self.limit.waiting);
        Err(Error::new(ErrorKind::Overloaded, message).with_retry_after(RETRY_AFTER))
    }

    /// Records that this many rows were accepted: their commit has ended.
    pub(super) fn accepted(&self, rows: usize) {
        self.may_wait(rows);
        self.flow.accepted(rows);
    }

    /// Records that this many rows may wait, until the next count.
    pub(super) fn may_wait(&self, rows: usize) {
        self.limit.state.lock().accepted.add(Instant::now(), rows);
    }

    /// Records that this many rows wait no more. `begun` is a time before the database was told.
    pub(super) fn delivered(&self, begun: Instant, rows: usize) {
        self.limit.state.lock().delivered.add(begun, rows);
        self.flow.delivered(rows);
    }

    /// Records that this many rows left. The next count tells whether they belong here.
    pub(super) fn left(&self, rows: usize) {
        self.flow.delivered(rows);
    }

    /// Applies a count that was made between these times. Work may be counted twice until the next
    /// one, never missed: what may have been accepted after the count is added to it, and only what
    /// was certainly delivered after it is subtracted.
    fn counted(&self, backlog: Backlog, from: Instant, until: Instant) {
        let mut state = self.limit.state.lock();
        if state.counted_at.is_some_and(|at| at > from) {
            return;
        }
        state.accepted.forget(|(_, last)| last < from);
        state.delivered.forget(|(first, _)| first <= until);
        (state.counted, state.counted_at) = (backlog, Some(from));
    }

    /// The waiting work, as last counted.
    pub(super) fn backlog(&self) -> Backlog {
        let state = self.limit.state.lock();
        let age = state.counted_at.map(|at| at.elapsed()).unwrap_or_default();
        Backlog { oldest: state.counted.oldest.map(|oldest| oldest + age), ..state.counted }
    }

    /// What is known of it.
    pub(super) fn waiting(&self) -> Waiting {
        let backlog = self.backlog();
        let counted_at = self.limit.state.lock().counted_at;
        let (accepted_per_second, delivered_per_second) = self.flow.per_second();
        Waiting {
            backlog,
            counted_ago: counted_at.map(|at| at.elapsed()),
            accepted_per_second,
            delivered_per_second,
            late_since: self.flow.late_since(&backlog),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(max_rows: i64) -> Depth {
        let metrics = Metrics::new("0", "0");
        let flow = Flow::new(Destination::EventBroker, Duration::from_mins(1), metrics);
        Depth::new("as much waits", max_rows, Arc::new(flow))
    }

    fn counted(depth: &Depth, rows: i64, from: Instant, until: Instant) {
        depth.counted(Backlog { rows, ..Backlog::default() }, from, until);
    }

    const MILLI: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn depth_is_what_waits_and_not_what_passed_through() {
        let depth = depth(200);
        counted(&depth, 0, Instant::now(), Instant::now());
        for _ in 0..600 {
            sleep(MILLI).await;
            depth.admit().unwrap();
            depth.accepted(1);
            sleep(MILLI).await;
            depth.delivered(Instant::now(), 1);
        }
        for _ in 0..200 {
            depth.admit().unwrap();
            depth.accepted(1);
        }
        let error = depth.admit().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.message().contains("as much waits as outbox.max_rows allows"), "{error}");
        depth.delivered(Instant::now(), 1);
        depth.admit().unwrap();
        depth.delivered(Instant::now(), 10_000);
        assert_eq!(depth.limit.state.lock().rows(), 0, "never below zero");
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_replaces_what_it_certainly_includes() {
        let depth = depth(100);
        let rows = || depth.limit.state.lock().rows();
        depth.accepted(10);
        sleep(MILLI * 10).await;
        let from = Instant::now();
        sleep(MILLI * 10).await;
        depth.accepted(5);
        depth.delivered(Instant::now(), 3);
        sleep(MILLI * 10).await;
        let until = Instant::now();
        sleep(MILLI * 10).await;
        depth.accepted(1);
        depth.delivered(Instant::now(), 2);
        counted(&depth, 12, from, until);
        assert_eq!(rows(), 12 + 5 + 1 - 2, "the five may be among the twelve");
        counted(&depth, 50, from - MILLI, until);
        assert_eq!(rows(), 16, "an older count says nothing");
        sleep(MILLI * 10).await;
        counted(&depth, 11, Instant::now(), Instant::now());
        assert_eq!(rows(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_ages_with_its_count() {
        let depth = depth(100);
        let oldest = Some(Duration::from_secs(50));
        let backlog = Backlog { rows: 1, oldest, dead: 0 };
        depth.counted(backlog, Instant::now(), Instant::now());
        assert!(depth.waiting().late_since.is_none());
        sleep(Duration::from_secs(20)).await;
        assert_eq!(depth.backlog().oldest, Some(Duration::from_secs(70)));
        assert!(depth.waiting().late_since.is_some());
    }
}
