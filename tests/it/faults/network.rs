//! The network between the program and each real server fails in every way toxiproxy knows, under
//! load, and comes back.
//!
//! Deadlines are wide, to distinguish a program that waits wrongly from a busy machine.
//! Measurements are printed (`--nocapture`).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use crate::support::{
    DEADLINE, Service, Setup, eventually,
    toxiproxy::{Fault, Toxiproxy},
};

/// Interval between two probes, as configured here.
const INTERVAL: Duration = Duration::from_millis(500);
/// Timeout of one probe, as configured here.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);
const UNHEALTHY_AFTER: u32 = 3;
const HEALTHY_AFTER: u32 = 1;
/// `timeout.total`, as configured here: the limit promised to callers.
const TOTAL: Duration = Duration::from_secs(1);
/// Allowance for a starved machine on bounds of a second or more: a server that is slow after a
/// fault opens the breaker once more. Unit tests assert the exact bounds in paused time.
const MARGIN: Duration = Duration::from_secs(10);
/// The longest allowed answer time of `/health`. It does no I/O and takes a millisecond; the rest
/// is allowance for the machine.
const HEALTH: Duration = Duration::from_millis(500);
/// The longest time of a call that does not reach a backend.
const FAST: Duration = Duration::from_millis(100);
const CALLERS: usize = 8;
/// Calls that may reach the backend before the breaker opens.
const LEARNING: usize = 60;
/// Calls that must fail after the breaker has opened, for each fault.
const FAILING: usize = 600;
/// The allowed memory growth over all faults of one backend.
const GROWTH_KIB: u64 = 20 * 1024;

/// A backend, and the calls that use it through the program.
struct Subject {
    connection: &'static str,
    /// The overall status during an outage.
    status: &'static str,
    path: String,
    body: Value,
}

impl Subject {
    fn call(&self, service: &Service) -> RequestBuilder {
        service.post(&self.path).json(&self.body)
    }

    /// Makes one call; returns its duration and whether it was served.
    async fn timed(&self, service: &Service) -> (Duration, bool) {
        let begin = Instant::now();
        let answer = self.call(service).send().await.unwrap();
        let took = begin.elapsed();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert!(matches!(status, 200 | 202 | 503), "{status}: {text}");
        assert!(took < TOTAL + MARGIN, "{}: a call took {took:?}: {text}", self.connection);
        (took, status != 503)
    }

    /// True once the probes have noticed; the breaker alone may notice earlier, which shows as
    /// `degraded`.
    fn is_down(&self, health: &Value) -> bool {
        let details = &health["connections"]["details"][self.connection];
        health["status"] == self.status && details["state"] == "unavailable"
    }

    fn is_whole(&self, health: &Value) -> bool {
        let details = &health["connections"]["details"][self.connection];
        health["status"] == "healthy"
            && details["state"] == "initialized"
            && details["circuit"] == "closed"
    }
}

fn setup(connection: &str) -> Setup {
    let millis = |time: Duration| format!("{}ms", time.as_millis());
    // For all three connections: with much shorter intervals, probes on a busy machine appear
    // stalled.
    let setup = ["event_broker", "execution_service", "database"]
        .iter()
        .fold(Setup::new(), |setup, name| {
            setup.set(&format!("{name}.probe.interval"), &millis(INTERVAL))
        });
    [
        ("probe.timeout", millis(PROBE_TIMEOUT)),
        ("probe.unhealthy_after", UNHEALTHY_AFTER.to_string()),
        ("probe.healthy_after", HEALTHY_AFTER.to_string()),
        ("pool.connect_timeout", "500ms".to_owned()),
        ("pool.acquire_timeout", "300ms".to_owned()),
        ("timeout.attempt", "300ms".to_owned()),
        // A short window, so that earlier successful calls do not hide failures for long.
        ("circuit_breaker.window", "2s".to_owned()),
        // A server that is slow after the fault may open the breaker once more.
        ("circuit_breaker.open_for", "1s".to_owned()),
        ("circuit_breaker.max_open_for", "2s".to_owned()),
        ("timeout.total", millis(TOTAL)),
    ]
    .into_iter()
    .fold(setup, |setup, (key, value)| setup.set(&format!("{connection}.{key}"), &value))
}

/// The results of the callers since the last check.
#[derive(Default)]
struct Seen {
    calls: parking_lot::Mutex<Vec<(Duration, bool)>>,
    /// Set once the link is broken, for callers that wait for that.
    broken: Notify,
    stop: AtomicBool,
}

impl Seen {
    fn forget(&self) {
        self.calls.lock().clear();
    }

    async fn reaches(&self, what: &str, count: usize, counts: impl Fn(bool) -> bool) {
        eventually(what, async || {
            let calls = self.calls.lock();
            (calls.iter().filter(|(_, served)| counts(*served)).count() >= count).then_some(())
        })
        .await;
    }

    /// Calls until `stop`, at most every few milliseconds.
    async fn caller(&self, subject: &Subject, service: &Service) {
        let mut pace = interval(Duration::from_millis(5));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let call = subject.timed(service).await;
            self.calls.lock().push(call);
        }
    }

    /// Requests `/health` until `stop`; each answer must come from memory.
    async fn health(&self, service: &Service) -> Duration {
        let mut pace = interval(Duration::from_millis(20));
        let mut longest = Duration::ZERO;
        while !self.stop.load(Ordering::Relaxed) {
            pace.tick().await;
            let begin = Instant::now();
            let answer = service.get("/health").send().await.unwrap();
            longest = longest.max(begin.elapsed());
            assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
            assert!(longest < HEALTH, "/health took {longest:?}");
        }
        longest
    }
}

/// The measurements of one fault.
#[derive(Debug)]
#[expect(dead_code, reason = "printed for people")]
struct Measured {
    noticed: Duration,
    slowest_call: Duration,
    fast_calls_percent: usize,
    recovered: Duration,
}

/// Polls `/health`; returns the time until the condition held.
async fn until(service: &Service, what: &str, wanted: impl Fn(&Value) -> bool) -> Duration {
    let begin = Instant::now();
    service.health(what, wanted).await;
    begin.elapsed()
}

/// Injects the fault, makes many calls, and removes it.
async fn one(fault: Fault, subject: &Subject, proxy: &Toxiproxy, service: &Service, seen: &Seen) {
    let name = subject.connection;
    if fault != Fault::HalfOpen {
        seen.reaches("calls are served", 20, |served| served).await;
    }
    let began = Instant::now();
    proxy.begin(fault).await;
    seen.forget();
    seen.broken.notify_one();
    let what = format!("{name}: {fault:?} shows");
    until(service, &what, |health| subject.is_down(health)).await;
    let noticed = began.elapsed();
    let bound = (INTERVAL.mul_f64(1.1) + PROBE_TIMEOUT) * UNHEALTHY_AFTER + MARGIN;
    assert!(noticed < bound, "{what} after {noticed:?}");

    seen.reaches(&format!("{name}: calls fail by {fault:?}"), LEARNING, |served| !served).await;
    seen.forget();
    seen.reaches(&format!("{name}: calls fail fast by {fault:?}"), FAILING, |served| !served).await;
    let calls = std::mem::take(&mut *seen.calls.lock());
    let fast = calls.iter().filter(|(took, _)| *took < FAST).count() * 100 / calls.len();
    assert!(fast >= 80, "{name}: {fast} % of the calls failed fast by {fault:?}");

    let ended = Instant::now();
    proxy.end(fault).await;
    let what = format!("{name} is healthy again after {fault:?}");
    until(service, &what, |health| subject.is_whole(health)).await;
    let recovered = ended.elapsed();
    let bound = INTERVAL.mul_f64(1.1) * HEALTHY_AFTER + Duration::from_secs(1) + MARGIN;
    assert!(recovered < bound, "{what}, but only after {recovered:?}");
    let slowest_call = calls.iter().map(|(took, _)| *took).max().unwrap();
    let measured = Measured { noticed, slowest_call, fast_calls_percent: fast, recovered };
    println!("{name} {fault:?}: {measured:?}");
}

/// Runs one fault with its callers and the health watchers.
async fn round(fault: Fault, subject: &Subject, proxy: &Toxiproxy, service: &Service) {
    let seen = Seen::default();
    let script = async {
        one(fault, subject, proxy, service, &seen).await;
        seen.forget();
        seen.reaches("calls are served again", 20, |served| served).await;
        seen.stop.store(true, Ordering::Relaxed);
    };
    let callers = async {
        if fault == Fault::HalfOpen {
            seen.broken.notified().await;
        }
        let callers = (0..CALLERS).map(|_| seen.caller(subject, service));
        futures_util::future::join_all(callers).await;
    };
    let (longest, (), ()) = tokio::join!(seen.health(service), callers, script);
    println!("{} {fault:?}: the slowest /health took {longest:?}", subject.connection);
}

async fn survives(subject: &Subject, proxy: &Toxiproxy, service: &Service) {
    service.healthy().await;
    let mut first = None;
    for fault in Fault::ALL {
        let begin = Instant::now();
        round(fault, subject, proxy, service).await;
        // The first fault has filled the buffers that stay.
        let before = *first.get_or_insert_with(|| service.memory_kib("VmRSS"));
        let after = service.memory_kib("VmRSS");
        assert!(after < before + GROWTH_KIB, "{fault:?}: memory grew from {before} to {after} KiB");
        assert!(begin.elapsed() < DEADLINE, "{fault:?} took {:?}", begin.elapsed());
        println!("{} {fault:?}: {after} KiB", subject.connection);
    }
    let details = service.json(&format!("/v1/connections/{}", subject.connection)).await;
    assert_eq!(details["circuit"], "closed");
    assert!(details["recoveries"].as_u64().unwrap() >= 6, "{details}");
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread")]
async fn redis_behind_a_bad_link_fails_fast_and_comes_back_by_itself() {
    let redis = crate::support::Redis::start().await;
    let proxy = Toxiproxy::before(redis.url().trim_start_matches("redis://")).await;
    let url = format!("redis://{}", proxy.address);
    let service = setup("event_broker").variable("REDIS_URL", &url).start().await;
    let subject = Subject {
        connection: "event_broker",
        status: "degraded",
        path: "/v1/events?delivery=direct".to_owned(),
        body: json!({"type": "x"}),
    };
    survives(&subject, &proxy, &service).await;
}

#[cfg(feature = "temporal")]
#[tokio::test(flavor = "multi_thread")]
async fn temporal_behind_a_bad_link_fails_fast_and_comes_back_by_itself() {
    let proxy = Toxiproxy::before(&crate::support::variable("TEST_TEMPORAL_ADDRESS")).await;
    let queue = format!("faults-{}", uuid::Uuid::now_v7());
    let setup = setup("execution_service")
        .variable("TEMPORAL_ADDRESS", &proxy.address)
        .variable("TEMPORAL_TASK_QUEUE", &queue);
    let service = setup.start().await;
    service.healthy().await;
    // No worker runs it, so it accepts signals for as long as the test runs.
    let id = service.execute(&json!({"workflow": "echo"})).await;
    let subject = Subject {
        connection: "execution_service",
        status: "degraded",
        path: format!("/v1/executions/{id}/signals/x"),
        body: json!({}),
    };
    survives(&subject, &proxy, &service).await;
    let end = service.post(&format!("/v1/executions/{id}/terminate")).send().await.unwrap();
    assert!(end.status().is_success());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn postgres_behind_a_bad_link_fails_fast_and_comes_back_by_itself() {
    let database = crate::support::Database::create().await;
    let proxy = Toxiproxy::before(database.address()).await;
    let url = database.url_at(&proxy.address);
    let service = setup("database").variable("DATABASE_URL", &url).start().await;
    let subject = Subject {
        connection: "database",
        status: "unhealthy",
        path: "/v1/executions".to_owned(),
        body: json!({"workflow": "echo"}),
    };
    survives(&subject, &proxy, &service).await;
    drop(service);
    database.drop().await;
}
