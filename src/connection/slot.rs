//! The background work of a managed connection: one build at a time, probes, replacement.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::OnceCell, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Backend, Checked, ConnectionReport, PoolStatus, Registry, Service, Settings,
    census::Census,
    guard::{Guard, bounded},
    live::{Lease, Live},
    probe::Verdict,
    pulse::Pulse,
    standing::Standing,
    timeline::Timeline,
};
use crate::{
    error::{Error, ErrorKind, RetryClass},
    model::chance::chance,
    tasks::Tasks,
    telemetry::metrics::{ConnectionMetrics, Outcome},
};

pub(super) type Flight<B> = Shared<BoxFuture<'static, Result<Arc<Live<B>>, Error>>>;

/// The state that all clones of a managed connection share.
pub(super) struct Slot<B: ?Sized + Backend> {
    pub(super) name: &'static str,
    pub(super) instance: Arc<str>,
    pub(super) registry: Registry<B>,
    pub(super) metrics: ConnectionMetrics,
    pub(super) guard: Guard,
    pub(super) tasks: Tasks,
    pub(super) stop: CancellationToken,
    pub(super) checked: OnceCell<Checked>,
    /// Unset until the configuration is known: a slot exists before it, because the factory of
    /// the embedded execution service is constructed with the database's slot.
    pub(super) settings: RwLock<Option<Arc<Settings>>>,
    pub(super) standing: Standing,
    pub(super) pulse: Pulse,
    pub(super) census: Census,
    /// The backend in use.
    pub(super) live: ArcSwapOption<Live<B>>,
    /// The build under way.
    pub(super) flight: Mutex<Option<Flight<B>>>,
    /// Why the last build failed; callers get it at once while the prober tries again.
    build_error: Mutex<Option<Error>>,
    needed: AtomicBool,
}

impl<B: ?Sized + Backend> Slot<B> {
    pub(super) fn new(
        registry: Registry<B>,
        instance: Arc<str>,
        metrics: ConnectionMetrics,
        tasks: Tasks,
    ) -> Self {
        let (name, now) = (registry.family(), Instant::now());
        let timeline = Arc::<Timeline>::default();
        Self {
            name,
            instance,
            registry,
            guard: Guard::new(name, metrics.clone(), Arc::clone(&timeline)),
            metrics,
            tasks,
            stop: CancellationToken::new(),
            checked: OnceCell::new(),
            settings: RwLock::default(),
            standing: Standing::new(name, timeline, now),
            pulse: Pulse::new(now),
            census: Census::default(),
            live: ArcSwapOption::empty(),
            flight: Mutex::default(),
            build_error: Mutex::default(),
            needed: AtomicBool::new(false),
        }
    }

    pub(super) fn settings(&self) -> Result<Arc<Settings>, Error> {
        self.settings.read().clone().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("{} is not configured yet", self.name))
        })
    }

    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease<B>, Error> {
        loop {
            // The usual case does not justify reading the clock twice.
            let live = if let Some(live) = self.live.load_full() {
                live
            } else {
                let begin = Instant::now();
                // Boxed, because each caller's future would have room for it otherwise, and is moved
                // several times on its way through the guard.
                let live = Box::pin(self.first_use()).await?;
                self.metrics.acquisition.add(begin.elapsed());
                live
            };
            // A backend is taken out before it is retired, so the next look finds another, or none.
            if let Some(lease) = Lease::new(live) {
                self.metrics.uses.inc();
                return Ok(lease);
            }
        }
    }

    /// One attempt of a call: gets the backend, then calls it.
    pub(super) async fn attempt<T, F, Fut>(self: &Arc<Self>, attempt: &F) -> Result<T, Error>
    where
        F: Fn(Lease<B>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        attempt(self.lease().await?).await
    }

    /// Records an outage that a call met, which no probe may have met.
    pub(super) fn note<T>(&self, result: &Result<T, Error>) {
        if let Err(error) = result
            && error.kind().blames_backend()
        {
            self.standing.note_error(error.kind());
        }
    }

    /// Joins the build under way, or begins it.
    async fn first_use(self: &Arc<Self>) -> Result<Arc<Live<B>>, Error> {
        if self.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, format!("{} is closed", self.name)));
        }
        self.need();
        if let Some(error) = self.build_error() {
            // The prober retries; this call cannot do better.
            return Err(error.with_retry(RetryClass::Never));
        }
        self.fly(false)?.await
    }

    /// Callers get `live` from now on; the backend it replaces is closed after its last caller.
    pub(super) fn swap_in(self: &Arc<Self>, live: Arc<Live<B>>) {
        if let Some(old) = self.live.swap(Some(live)) {
            self.census.replaced();
            self.replaced(old);
        }
        // Closing takes what is there once, after `stop`: it may have been before this one.
        if self.stop.is_cancelled()
            && let Some(late) = self.live.swap(None)
        {
            self.replaced(late);
        }
    }

    /// Lets the callers of a replaced backend finish, then closes it.
    pub(super) fn replaced(self: &Arc<Self>, old: Arc<Live<B>>) {
        let swap = self.census.swap();
        self.tasks.spawn(async move {
            old.retire().await;
            drop(old);
            drop(swap);
        });
    }

    /// Records that the connection is needed: from now on it is built and probed.
    pub(super) fn need(&self) {
        self.needed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_needed(&self) -> bool {
        self.needed.load(Ordering::Relaxed)
    }

    /// Why the last build failed.
    pub(super) fn build_error(&self) -> Option<Error> {
        self.build_error.lock().clone()
    }

    pub(super) fn set_build_error(&self, error: Option<Error>) {
        *self.build_error.lock() = error;
    }

    /// Probes for as long as the program runs, so that recovery never stops.
    pub(super) async fn supervise(self: Arc<Self>) {
        loop {
            let Ok(settings) = self.settings() else { return };
            let interval = settings.probe.interval;
            self.pulse.beat(interval);
            // A slow probe must not make the checks less frequent.
            let next = Instant::now() + jittered(interval);
            self.metrics.probe_interval.set(interval.as_secs_f64());
            if self.is_needed() {
                self.probe_once(&settings).await;
            }
            self.pulse.beat(interval);
            self.pulse.pause_until(next).await;
        }
    }

    async fn probe_once(self: &Arc<Self>, settings: &Arc<Settings>) {
        let live = self.live.load_full();
        let Some(live) = live else {
            // The build records its own result; it is not awaited, so that the heartbeat continues.
            let _shared = self.fly(false);
            return;
        };
        let begin = Instant::now();
        let probing = bounded(settings.probe.timeout, live.backend.probe());
        // A probe that panics counts as failed and does not end the loop.
        let result = AssertUnwindSafe(probing)
            .catch_unwind()
            .await
            .unwrap_or_else(|_panic| Err(Error::new(ErrorKind::Internal, "the probe panicked")));
        let took = begin.elapsed();
        self.count_probe(took, result.is_ok());
        let verdict = self.record(took, result.as_ref().copied(), settings);
        if verdict.rebuild {
            let _shared = self.fly(true);
        }
    }

    /// Counts a probe, in the background or at the end of a build.
    pub(super) fn count_probe(&self, took: Duration, good: bool) {
        self.metrics.probe_seconds.observe(took.as_secs_f64());
        let outcome = if good { Outcome::Success } else { Outcome::Failure };
        self.metrics.probes.of(outcome).inc();
    }

    /// Records the result of a probe, or of an attempt to build the backend.
    pub(super) fn record(
        &self,
        took: Duration,
        result: Result<(), &Error>,
        settings: &Settings,
    ) -> Verdict {
        let (verdict, service) = self.standing.record(took, result, &settings.probe);
        if result.is_ok() {
            self.set_build_error(None);
        }
        if let Some(outage) = verdict.recovered_after {
            self.metrics.recovery_seconds.observe(outage.as_secs_f64());
        }
        let down = service == Service::Unavailable;
        self.guard.probed(result.is_ok(), down, settings.probe.healthy_after);
        verdict
    }

    pub(super) fn is_out(&self) -> bool {
        self.standing.service() == Service::Unavailable
    }

    /// Brings the gauges up to date that nothing else sets: those that a scrape finds as they are.
    pub(super) fn collect(&self) {
        let pool = self.live.load().as_ref().and_then(|live| live.backend.pool());
        let PoolStatus { max, in_use, idle, waiting } = pool.unwrap_or_default();
        self.metrics.show_pool(max, in_use, idle, waiting);
        let is_up = self.standing.service() == Service::Initialized;
        self.metrics.up.set(i64::from(is_up));
        if let Some(probe) = self.standing.look(|state| state.report(Instant::now())) {
            self.metrics.probe_age.set(probe.age.as_secs_f64());
        }
        self.metrics.show_breaker(self.guard.circuit());
        self.metrics.retry_budget.set(self.guard.budget_available());
    }

    pub(super) fn report(&self) -> ConnectionReport {
        let settings = self.settings.read().clone();
        let live = self.live.load_full();
        let pool = live.as_ref().and_then(|live| live.backend.pool());
        let is_closing = self.stop.is_cancelled();
        self.standing.look(|state| {
            let service = state.service();
            ConnectionReport {
                name: self.name,
                backend: settings.as_ref().map(|s| s.backend.clone()).unwrap_or_default(),
                required: settings.as_ref().is_some_and(|s| s.required),
                service,
                circuit: self.guard.circuit(),
                retry_budget: self.guard.budget_available(),
                decided: state.decided(),
                down: service == Service::Unavailable,
                builds: self.metrics.builds.of(Outcome::Success).get(),
                rebuilds: self.census.rebuilds(),
                discarded: self.census.discards(),
                build_failures: self.metrics.builds.of(Outcome::Failure).get(),
                live: self.census.live(),
                swapping: self.census.is_swapping(),
                uses: self.metrics.uses.get(),
                in_use: live.map_or(0, |live| live.in_use.load(Ordering::Relaxed)),
                acquire_mean: self.metrics.acquisition.mean(self.metrics.uses.get()),
                acquire_max: self.metrics.acquisition.max(),
                pool,
                probe: state.report(Instant::now()),
                last_error: state.last_error(),
                recoveries: state.recoveries(),
                stalled: !is_closing && self.pulse.has_stalled(),
            }
        })
    }
}

/// Up to a tenth shorter or longer, so that replicas do not probe in step.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * chance())
}
