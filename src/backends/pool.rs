//! The pool for every backend whose connections serve one caller at a time.
//!
//! Callers take the most recently used connection, so that connections which the load does not need
//! age and are closed. A background task maintains the idle ones: it closes those that are idle for
//! too long, too old or known to be broken, and checks that others still work, before a caller
//! meets one that a firewall has silently dropped. It also names callers that hold a connection for
//! too long.

mod holders;
mod policy;

use std::{cell::Cell, sync::Arc, time::Duration};

use async_trait::async_trait;
use deadpool::managed::{self, Metrics, QueueMode, RecycleError, RecycleResult, TimeoutType};
use futures_util::future::join_all;
use prometheus_client::metrics::histogram::Histogram;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Instant, sleep, timeout},
};
use tracing::Instrument;

use self::{
    holders::{Holders, Ticket},
    policy::{Due, Life, Policy},
};
use crate::{
    connection::{BuildContext, PoolStatus, current_operation, was_cut_off},
    error::{Error, ErrorKind, RetryClass},
    telemetry::metrics::{ConnectionMetrics, Phase},
};

/// The operation of a checkout outside a guarded call.
const UNGUARDED: &str = "unguarded";

/// Opens connections and checks that they work.
#[async_trait]
pub(super) trait Connect: Send + Sync + 'static {
    type Conn: Send + 'static;

    /// True when [`Connect::check`] runs before every use, besides the checks that `keepalive`
    /// requires.
    const CHECK_BEFORE_USE: bool = false;

    async fn connect(&self) -> Result<Self::Conn, Error>;

    /// True when the connection is known to be unusable, without a round trip.
    fn is_broken(conn: &mut Self::Conn) -> bool;

    /// Makes one round trip to the server. A backend without a network has nothing to check.
    async fn check(&self, _conn: &mut Self::Conn) -> Result<(), Error> {
        Ok(())
    }
}

/// A pooled connection. Its only user holds its lock: a caller, or the check of an idle connection.
struct Pooled<T> {
    conn: T,
    life: Life,
    /// True when a check has failed.
    lost: bool,
}

type Shared<C> = Arc<Mutex<Pooled<<C as Connect>::Conn>>>;

/// Implements the callbacks that deadpool requires.
struct Manager<C> {
    connect: Arc<C>,
    policy: Policy,
    metrics: ConnectionMetrics,
}

impl<C: Connect> Manager<C> {
    /// Checks that a connection works.
    async fn check(&self, pooled: &mut Pooled<C::Conn>) -> Result<(), Error> {
        let _phase = Timing::begin(self.metrics.acquire_seconds.of(Phase::Validate));
        self.connect.check(&mut pooled.conn).await?;
        pooled.life.answered(Instant::now());
        Ok(())
    }
}

impl<C: Connect> managed::Manager for Manager<C> {
    type Type = Shared<C>;
    type Error = Error;

    async fn create(&self) -> Result<Shared<C>, Error> {
        let _phase = Timing::begin(self.metrics.acquire_seconds.of(Phase::Connect));
        let conn = self.connect.connect().await?;
        let life = self.policy.begin(Instant::now());
        Ok(Arc::new(Mutex::new(Pooled { conn, life, lost: false })))
    }

    async fn recycle(&self, shared: &mut Shared<C>, _: &Metrics) -> RecycleResult<Error> {
        // A caller that takes a connection during its check waits for the result.
        let mut pooled = shared.lock().await;
        let due = self.policy.due(&pooled.life, Instant::now());
        if let Due::Close(reason) = due {
            return Err(RecycleError::message(reason));
        }
        // A future that is dropped inside a transaction leaves its connection broken.
        if pooled.lost || C::is_broken(&mut pooled.conn) {
            return Err(RecycleError::message("it is broken"));
        }
        // Checked here too, because after a pause of the whole process the background task is late.
        if C::CHECK_BEFORE_USE || due == Due::Check {
            self.check(&mut pooled).await?;
        }
        Ok(())
    }
}

/// Observes the duration of a phase of acquiring a connection, whatever its result.
struct Timing<'a> {
    histogram: &'a Histogram,
    begin: Instant,
}

tokio::task_local! {
    /// The time that the phases of the current acquisition took, which does not count as waiting.
    static SPENT: Cell<Duration>;
}

impl<'a> Timing<'a> {
    fn begin(histogram: &'a Histogram) -> Self {
        Self { histogram, begin: Instant::now() }
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        let took = self.begin.elapsed();
        self.histogram.observe(took.as_secs_f64());
        // Background checks belong to no acquisition.
        let _counted = SPENT.try_with(|spent| spent.set(spent.get() + took)).is_ok();
    }
}

/// A checked-out connection.
pub(super) struct Checkout<C: Connect> {
    // Fields are dropped in this order: the lock is released before the connection returns to the
    // pool.
    pooled: OwnedMutexGuard<Pooled<C::Conn>>,
    object: Option<managed::Object<Manager<C>>>,
    _ticket: Option<Ticket>,
}

impl<C: Connect> Checkout<C> {
    /// Closes the connection instead of returning it.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "only Redis needs it"))]
    pub(super) fn discard(mut self) {
        self.leave_pool();
    }

    fn leave_pool(&mut self) {
        if let Some(object) = self.object.take() {
            drop(managed::Object::take(object));
        }
    }
}

impl<C: Connect> Drop for Checkout<C> {
    fn drop(&mut self) {
        // A caller that left inside a transaction leaves its locks behind, which only closing the
        // connection releases: it must not stay idle until the next checkout. A caller that was cut
        // off while it waited for an answer may have met a silently dead link, on which the next
        // caller would wait just as long.
        let broken = C::is_broken(&mut self.pooled.conn);
        if std::thread::panicking() || was_cut_off() || broken {
            self.leave_pool();
        }
        self.pooled.life.given_back(Instant::now());
    }
}

impl<C: Connect> std::ops::Deref for Checkout<C> {
    type Target = C::Conn;

    fn deref(&self) -> &C::Conn {
        &self.pooled.conn
    }
}

impl<C: Connect> std::ops::DerefMut for Checkout<C> {
    fn deref_mut(&mut self) -> &mut C::Conn {
        &mut self.pooled.conn
    }
}

/// A pool of connections that serve one caller at a time.
pub(super) struct Pool<C: Connect> {
    pool: managed::Pool<Manager<C>>,
    holders: Arc<Holders>,
}

impl<C: Connect> Pool<C> {
    /// Creates an empty pool, and the task that maintains it until `context.closing` is cancelled.
    pub(super) fn new(connect: Arc<C>, context: &BuildContext) -> Result<Self, Error> {
        let (config, metrics) = (&context.pool, context.metrics.clone());
        let manager = Manager { connect, policy: Policy::new(config), metrics };
        let pool = managed::Pool::builder(manager)
            .max_size(config.max_size)
            // The most recently used connection comes first, so that unneeded ones become idle.
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(config.acquire_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.acquire_timeout))
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "the pool cannot be set up").with_source(error)
            })?;
        let new = Self { pool, holders: Arc::default() };
        new.look_after(context);
        Ok(new)
    }

    fn look_after(&self, context: &BuildContext) {
        let Some(pace) = self.pool.manager().policy.pace() else { return };
        let keeper = Arc::new(Keeper {
            connection: context.connection,
            pool: self.pool.clone(),
            holders: Arc::clone(&self.holders),
            check_timeout: context.pool.acquire_timeout,
            pace,
        });
        let name = format!("{}_pool", context.connection);
        context.tasks.keep_until(name, &context.closing, &keeper, Keeper::go_round);
    }

    /// Returns a connection as soon as one is free.
    ///
    /// # Errors
    /// `Overloaded` when none becomes free in time; the cause when none can be opened.
    pub(super) async fn get(&self) -> Result<Checkout<C>, Error> {
        self.get_for(current_operation().unwrap_or(UNGUARDED), Duration::ZERO).await
    }

    /// Like [`Pool::get`], for an operation that may hold it for `expected` without counting as a
    /// leak.
    pub(super) async fn get_for(
        &self,
        operation: &'static str,
        expected: Duration,
    ) -> Result<Checkout<C>, Error> {
        let begin = Instant::now();
        let taking = async { (self.pool.get().await, SPENT.with(Cell::get)) };
        let span = tracing::debug_span!("acquire", operation);
        let (taken, spent) = SPENT.scope(Cell::default(), taking).instrument(span).await;
        let manager = self.pool.manager();
        let took = begin.elapsed();
        manager.metrics.acquisition.add(took);
        manager
            .metrics
            .acquire_seconds
            .of(Phase::Wait)
            .observe(took.saturating_sub(spent).as_secs_f64());
        let object = taken.map_err(pool_error)?;
        let pooled = Arc::clone(&object).lock_owned().await;
        let now = Instant::now();
        let leaks_at = manager.policy.leaks_at(now, expected);
        let ticket = leaks_at.map(|leaks_at| self.holders.enter(operation, now, leaks_at));
        Ok(Checkout { pooled, object: Some(object), _ticket: ticket })
    }

    /// Closes the idle connections, because another connection of the pool proved to be unusable.
    pub(super) fn close_idle(&self) {
        let _closed = self.pool.retain(|_, _| false);
    }

    pub(super) fn status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus {
            max: status.max_size,
            in_use: status.size.saturating_sub(status.available),
            idle: status.available,
            waiting: status.waiting,
        }
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }
}

/// Maintains a pool in the background.
struct Keeper<C: Connect> {
    connection: &'static str,
    pool: managed::Pool<Manager<C>>,
    holders: Arc<Holders>,
    /// A connection that does not answer a check within this time is lost.
    check_timeout: Duration,
    pace: Duration,
}

impl<C: Connect> Keeper<C> {
    async fn go_round(self: Arc<Self>) {
        while !self.pool.is_closed() {
            sleep(self.pace).await;
            self.report_leaks();
            self.tidy().await;
        }
        std::future::pending::<()>().await;
    }

    fn report_leaks(&self) {
        let connection = self.connection;
        for leak in self.holders.leaks(Instant::now()) {
            let operation = leak.operation;
            let held_ms = u64::try_from(leak.held.as_millis()).unwrap_or(u64::MAX);
            self.pool.manager().metrics.leaks.inc();
            // Logged in the span of the holder, whose fields identify the request.
            leak.span.in_scope(|| {
                tracing::warn!(
                    connection,
                    operation,
                    held_ms,
                    "a pooled connection of {connection} is held for longer than pool.leak_after"
                );
            });
        }
    }

    /// Closes the idle connections that have expired, and those that fail their check.
    async fn tidy(&self) {
        let now = Instant::now();
        let mut unproven = Vec::new();
        self.remove(|shared| {
            // Only this task locks an idle connection.
            let Ok(mut pooled) = Arc::clone(shared).try_lock_owned() else { return false };
            let due = self.pool.manager().policy.due(&pooled.life, now);
            if matches!(due, Due::Close(_)) || C::is_broken(&mut pooled.conn) {
                return true;
            }
            if due == Due::Check {
                unproven.push(pooled);
            }
            false
        });
        if unproven.is_empty() {
            return;
        }
        // The checks run concurrently, so that a dead link costs one timeout and not one per
        // connection.
        join_all(unproven.into_iter().map(|pooled| self.check(pooled))).await;
        self.remove(|shared| shared.try_lock().is_ok_and(|pooled| pooled.lost));
    }

    async fn check(&self, mut pooled: OwnedMutexGuard<Pooled<C::Conn>>) {
        let checking = timeout(self.check_timeout, self.pool.manager().check(&mut pooled)).await;
        let error = match checking {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        pooled.lost = true;
        let connection = self.connection;
        tracing::debug!(connection, error, "an idle connection was lost and is closed");
    }

    fn remove(&self, mut unwanted: impl FnMut(&Shared<C>) -> bool) {
        // The connections are closed where they are dropped, after the pool is unlocked.
        drop(self.pool.retain(|shared, _| !unwanted(shared)));
    }
}

fn pool_error(error: managed::PoolError<Error>) -> Error {
    match error {
        managed::PoolError::Backend(error) => error,
        // This is our own limit: the backend never received the call, and is not to blame.
        managed::PoolError::Timeout(TimeoutType::Wait) => Error::new(
            ErrorKind::Overloaded,
            "no pooled connection became free within pool.acquire_timeout",
        ),
        managed::PoolError::Timeout(_) => {
            Error::new(ErrorKind::Timeout, "no connection within pool.connect_timeout")
                .with_retry(RetryClass::NotSent)
        }
        managed::PoolError::Closed => Error::new(ErrorKind::Closed, "the pool is closed"),
        other => Error::new(ErrorKind::Unavailable, "no pooled connection").with_source(other),
    }
}
