//! The managed connection over a backend whose behaviour the test decides. Time is paused: what
//! waits, waits on tokio's clock.

mod storm;

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    config::{BackendConfig, BackendDescriptor, Pool, Probe, Section, Startup, Table},
    error::ErrorKind,
    tasks::Tasks,
    telemetry::metrics::{Metrics, Outcome},
};

const CALL: Operation = Operation::idempotent("call");

/// The inputs that the test controls, and the recorded events.
#[derive(Debug, Default)]
struct World {
    refuses: AtomicBool,
    sick: AtomicBool,
    /// Probes keep their thread.
    blocks: AtomicBool,
    build_takes_ms: AtomicUsize,
    builds: AtomicUsize,
    closed: AtomicUsize,
}

impl World {
    fn builds(&self) -> usize {
        self.builds.load(Ordering::SeqCst)
    }

    fn closed(&self) -> usize {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Family for MockBackend {
    const OPERATIONS: &'static [Operation] = &[CALL];
}

#[derive(Debug)]
struct MockBackend {
    number: usize,
    /// The size of the pool that it was built with.
    pool: usize,
    world: Arc<World>,
}

#[async_trait]
impl Backend for MockBackend {
    async fn probe(&self) -> Result<(), Error> {
        while self.world.blocks.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        if self.world.sick.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Timeout, "it is sick"));
        }
        Ok(())
    }

    async fn close(&self) {
        self.world.closed.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct NoConfig {}

impl BackendConfig for NoConfig {
    fn address(&self) -> String {
        String::new()
    }
}

struct MockFactory(Arc<World>);

#[async_trait]
impl Factory<MockBackend> for MockFactory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: "mock",
            name: "mock",
            variables: &[],
            shared: false,
            example: "",
            table: Table::of::<NoConfig>(),
        }
    }

    async fn build(&self, _: &Section, context: &BuildContext) -> Result<Arc<MockBackend>, Error> {
        let number = self.0.builds.fetch_add(1, Ordering::SeqCst) + 1;
        let takes = self.0.build_takes_ms.load(Ordering::SeqCst);
        sleep(Duration::from_millis(u64::try_from(takes).unwrap())).await;
        if self.0.refuses.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Refused, "nobody listens"));
        }
        let (pool, world) = (context.pool.max_size, Arc::clone(&self.0));
        Ok(Arc::new(MockBackend { number, pool, world }))
    }
}

fn managed(startup: Startup, world: &Arc<World>) -> Managed<MockBackend> {
    let registry = Registry::new("mock").register(MockFactory(Arc::clone(world)));
    let metrics = Metrics::new("0", "0").connection("mock");
    let slot = Managed::new(registry, "test".into(), metrics, Tasks::default());
    slot.start(settings(startup));
    slot
}

fn settings(startup: Startup) -> Settings {
    Settings {
        backend: "mock".to_owned(),
        section: Section::default(),
        startup,
        startup_timeout: Duration::from_secs(30),
        required: true,
        pool: Pool::default(),
        policies: Policies::default(),
        probe: Probe::default(),
    }
}

fn with_pool_of(max_size: usize) -> Settings {
    let pool = Pool { max_size, ..Pool::default() };
    Settings { pool, ..settings(Startup::Background) }
}

async fn number(slot: &Managed<MockBackend>) -> Result<usize, Error> {
    slot.client().call(CALL, |backend| async move { Ok(backend.number) }).await
}

/// Lets the clock run until `holds`, up to ten minutes.
async fn until(slot: &Managed<MockBackend>, holds: impl Fn(&ConnectionReport) -> bool) {
    let begin = Instant::now();
    while !holds(&slot.report()) {
        assert!(begin.elapsed() < Duration::from_mins(10), "{:?}", slot.report());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_simultaneous_first_calls_build_one_backend() {
    let world = Arc::new(World::default());
    world.build_takes_ms.store(100, Ordering::SeqCst);
    let slot = managed(Startup::Lazy, &world);
    let calls = (0..10_000).map(|_| number(&slot));
    let numbers = futures_util::future::join_all(calls).await;
    assert!(numbers.iter().all(|number| matches!(number, Ok(1))));
    let report = slot.report();
    assert_eq!((world.builds(), report.builds, report.uses, report.live), (1, 1, 10_000, 1));
    assert_eq!(report.in_use, 0, "every call gave the backend back");
}

#[tokio::test(start_paused = true)]
async fn a_lazy_connection_is_not_made_before_it_is_needed() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Lazy, &world);
    sleep(Duration::from_mins(5)).await;
    assert_eq!((world.builds(), slot.report().service), (0, Service::NotInitialized));
    assert_eq!(number(&slot).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_does_not_end_the_build_for_the_others() {
    let world = Arc::new(World::default());
    world.build_takes_ms.store(100, Ordering::SeqCst);
    let slot = managed(Startup::Lazy, &world);
    let gone = tokio::time::timeout(Duration::from_millis(10), number(&slot)).await;
    assert!(gone.is_err());
    assert_eq!(number(&slot).await.unwrap(), 1);
    assert_eq!(world.builds(), 1);
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_calls_fail_at_once_and_recovery_is_for_ever() {
    let world = Arc::new(World::default());
    world.refuses.store(true, Ordering::SeqCst);
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Unavailable).await;
    let before = (world.builds(), Instant::now());
    for _ in 0..1000 {
        let kind = number(&slot).await.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Refused | ErrorKind::CircuitOpen), "{kind}");
    }
    assert_eq!(slot.report().circuit, Circuit::Open);
    assert_eq!((world.builds(), Instant::now()), before, "calls neither wait nor connect");
    sleep(Duration::from_hours(24)).await;
    assert!(world.builds() > 10_000, "it never gives up");

    world.refuses.store(false, Ordering::SeqCst);
    let back = Instant::now();
    until(&slot, |report| report.service == Service::Initialized).await;
    let limit = Probe::default().interval + Duration::from_secs(1);
    assert!(back.elapsed() <= limit, "it took {:?}", back.elapsed());
    assert_eq!(slot.report().circuit, Circuit::Closed);
    assert!(number(&slot).await.is_ok());
    assert_eq!(slot.report().recoveries, 0, "it has never worked before");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_stays_sick_is_replaced_and_closed_after_its_last_caller() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    let lease = slot.client().lease().await.unwrap();
    world.sick.store(true, Ordering::SeqCst);
    until(&slot, |report| report.service == Service::Unavailable).await;
    assert_eq!(number(&slot).await.unwrap(), 1, "the old one serves until there is a better one");
    world.sick.store(false, Ordering::SeqCst);
    until(&slot, |report| report.rebuilds >= 1 || report.service == Service::Initialized).await;
    let replaced = slot.report().rebuilds == 1;
    drop(lease);
    sleep(Duration::from_secs(1)).await;
    let report = slot.report();
    assert_eq!((report.live, report.swapping), (1, false));
    // A failed probe of the new one closes it as well; only the living one is open.
    assert_eq!(world.closed(), world.builds() - 1, "replaced: {replaced}");
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_callers_and_closes_once() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    let lease = slot.client().lease().await.unwrap();
    let begin = Instant::now();
    let holding = async {
        sleep(Duration::from_secs(2)).await;
        assert_eq!(world.closed(), 0, "it was closed under its caller");
        drop(lease);
    };
    tokio::join!(slot.close(), holding);
    assert_eq!(begin.elapsed().as_secs(), 2);
    slot.close().await;
    assert_eq!(world.closed(), 1);
    assert_eq!(slot.report().service, Service::Closed);
    assert_eq!(number(&slot).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn start_waits_or_fails_as_it_is_told() {
    let world = Arc::new(World::default());
    world.refuses.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    assert!(managed(Startup::Background, &world).started().await.is_ok());
    assert_eq!(begin.elapsed().as_secs(), 0);
    assert!(managed(Startup::Wait, &world).started().await.is_ok());
    assert_eq!(begin.elapsed().as_secs(), 30);
    let error = managed(Startup::Fail, &world).started().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("nobody listens"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn new_settings_are_built_and_probed_before_they_are_used() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    let old = slot.client().lease().await.unwrap();
    for cause in [&world.refuses, &world.sick] {
        cause.store(true, Ordering::SeqCst);
        assert!(slot.prepare(with_pool_of(20)).await.is_err());
        cause.store(false, Ordering::SeqCst);
        assert_eq!(number(&slot).await.unwrap(), 1, "the old one serves on");
    }
    let prepared = slot.prepare(with_pool_of(20)).await.unwrap();
    assert_eq!(number(&slot).await.unwrap(), 1, "it is not in use yet");
    slot.commit(prepared);
    let new = number(&slot).await.unwrap();
    assert!(new > 1);
    assert_eq!(slot.report().live, 2, "the old one still has a caller");
    assert_eq!(slot.report().rebuilds, 1);
    drop(old);
    until(&slot, |report| report.live == 1).await;
    assert_eq!(number(&slot).await.unwrap(), new);
}

#[tokio::test(start_paused = true)]
async fn policies_change_without_a_reconnect() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    let mut new = settings(Startup::Background);
    new.policies.concurrency.max_in_flight = 1;
    new.policies.concurrency.max_waiting = 0;
    let prepared = slot.prepare(new).await.unwrap();
    assert!(!prepared.rebuilds());
    slot.commit(prepared);
    let client = slot.client();
    let stuck = client.call(CALL, |_| std::future::pending::<Result<(), Error>>());
    let refused = async {
        tokio::task::yield_now().await;
        assert_eq!(number(&slot).await.unwrap_err().kind(), ErrorKind::Overloaded);
    };
    tokio::select! {
        _ = stuck => unreachable!("it is stuck"),
        () = refused => {}
    }
    assert_eq!((world.builds(), slot.report().rebuilds), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_prepared_and_not_used_is_closed() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    let prepared = slot.prepare(with_pool_of(20)).await.unwrap();
    let report = slot.report();
    assert!(report.live == 2 && report.swapping, "it is a singleton outside of a swap: {report:?}");
    prepared.discard().await;
    let report = slot.report();
    assert_eq!((world.closed(), report.live, report.swapping), (1, 1, false));
    assert_eq!((report.rebuilds, report.discarded), (0, 1), "it has replaced nothing");
    assert_eq!(number(&slot).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_prepared_and_dropped_is_closed_and_counted() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    drop(slot.prepare(with_pool_of(20)).await.unwrap());
    let report = slot.report();
    assert!(report.live == 2 && report.swapping, "it is closed in the background: {report:?}");
    assert_eq!((report.rebuilds, report.discarded), (0, 1));
    until(&slot, |report| report.live == 1 && !report.swapping).await;
    assert_eq!(world.closed(), 1);
    drop(slot.prepare(settings(Startup::Background)).await.unwrap());
    assert_eq!(slot.report().discarded, 1, "nothing was built");
    assert_eq!(number(&slot).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_build_after_old_settings_is_not_used() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Initialized).await;
    world.build_takes_ms.store(1000, Ordering::SeqCst);
    let reconnecting = slot.reconnect();
    let reloading = async {
        sleep(Duration::from_millis(500)).await;
        world.build_takes_ms.store(0, Ordering::SeqCst);
        let prepared = slot.prepare(with_pool_of(20)).await.unwrap();
        slot.commit(prepared);
    };
    let (reconnected, ()) = tokio::join!(reconnecting, reloading);
    reconnected.unwrap();
    assert_eq!(number(&slot).await.unwrap(), 3, "the one after the new settings");
    until(&slot, |report| report.live == 1).await;
}

async fn pool(slot: &Managed<MockBackend>) -> usize {
    slot.client().call(CALL, |backend| async move { Ok(backend.pool) }).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_connection_first_used_during_a_reload_is_made_after_the_new_settings() {
    let lazy = || Settings { startup: Startup::Lazy, ..with_pool_of(20) };
    let world = Arc::new(World::default());
    let slot = managed(Startup::Lazy, &world);
    let prepared = slot.prepare(lazy()).await.unwrap();
    assert_eq!(pool(&slot).await, Pool::default().max_size, "it is made before they are in use");
    slot.commit(prepared);
    assert_eq!(pool(&slot).await, 20);
    until(&slot, |report| report.live == 1).await;
    assert_eq!((world.builds(), world.closed()), (2, 1));
    let report = slot.report();
    let used = report.builds - report.discarded;
    assert!(used <= 1 + report.rebuilds, "no build was for a single call");

    let slot = managed(Startup::Lazy, &world);
    world.build_takes_ms.store(1000, Ordering::SeqCst);
    let prepared = slot.prepare(lazy()).await.unwrap();
    let reloading = async {
        sleep(Duration::from_millis(500)).await;
        slot.commit(prepared);
    };
    let (used, ()) = tokio::join!(pool(&slot), reloading);
    assert_eq!(used, 20, "they came into use while it was made");
    until(&slot, |report| report.live == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_probe_interval_counts_at_once_and_stalls_nothing() {
    let every = |interval| {
        let probe = Probe { interval, ..Probe::default() };
        Settings { probe, ..settings(Startup::Background) }
    };
    let slot = managed(Startup::Background, &Arc::default());
    until(&slot, |report| report.service == Service::Initialized).await;
    for (interval, before) in [(60, 1), (1, 40), (60, 1)] {
        sleep(Duration::from_secs(before)).await;
        slot.commit(slot.prepare(every(Duration::from_secs(interval))).await.unwrap());
        for _ in 0..50 {
            assert!(!slot.report().stalled, "after {interval} s came into use");
            sleep(Duration::from_millis(100)).await;
        }
        let age = slot.report().probe.unwrap().age;
        assert!(age < Duration::from_secs(interval.min(5)) * 2, "the last probe is {age:?} old");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_replaces_the_backend_or_says_why_not() {
    let world = Arc::new(World::default());
    let slot = managed(Startup::Lazy, &world);
    slot.reconnect().await.unwrap();
    assert_eq!(number(&slot).await.unwrap(), 1);
    slot.reconnect().await.unwrap();
    assert_eq!(number(&slot).await.unwrap(), 2);
    world.refuses.store(true, Ordering::SeqCst);
    assert_eq!(slot.reconnect().await.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(number(&slot).await.unwrap(), 2);
    for _ in 0..Probe::default().unhealthy_after {
        slot.reconnect().await.unwrap_err();
    }
    assert_eq!(slot.report().service, Service::Initialized, "the old one works");
}

#[tokio::test(start_paused = true)]
async fn a_good_call_through_the_guard_allocates_nothing() {
    let connection = managed(Startup::Wait, &Arc::default());
    connection.started().await.unwrap();
    let client = connection.client();
    let good = || async { client.call(CALL, |_backend| async { Ok(()) }).await.unwrap() };
    let one = || assert_eq!(good().now_or_never(), Some(()));
    one();
    let box_of_one = allocation_counter::measure(|| drop(black_box(Box::new(1))));
    assert_eq!(box_of_one.count_total, 1, "the counter does not count");
    let hundred_calls = allocation_counter::measure(|| (0..100).for_each(|_| one()));
    assert_eq!(hundred_calls.count_total, 0, "{hundred_calls:?}");
}

#[tokio::test(start_paused = true)]
async fn numbers_count_what_their_names_say() {
    let world = Arc::new(World::default());
    world.refuses.store(true, Ordering::SeqCst);
    let slot = managed(Startup::Background, &world);
    until(&slot, |report| report.service == Service::Unavailable).await;
    let metrics = &slot.slot.metrics;
    let count = |outcome| metrics.probes.of(outcome).get();
    let probes = || (count(Outcome::Success), count(Outcome::Failure));
    let failed = slot.report().build_failures;
    assert_eq!(probes(), (0, failed), "a check that finds nothing to probe has failed");
    world.refuses.store(false, Ordering::SeqCst);
    until(&slot, |report| report.service == Service::Initialized).await;
    let report = slot.report();
    assert_eq!(probes(), (1, report.build_failures), "the build ended with a probe");
    assert_eq!((report.recoveries, report.rebuilds), (0, 0), "it has never worked before");
    assert_eq!(report.build_failures + report.builds, world.builds() as u64);

    let prepared = slot.prepare(with_pool_of(20)).await.unwrap();
    slot.commit(prepared);
    let report = slot.report();
    assert_eq!((report.builds, report.rebuilds), (2, 1));
    assert_eq!(count(Outcome::Success), 2, "one for each build");
    world.refuses.store(true, Ordering::SeqCst);
    assert!(slot.prepare(with_pool_of(30)).await.is_err());
    assert_eq!(count(Outcome::Failure), failed, "the one in use was not probed by that");
}
