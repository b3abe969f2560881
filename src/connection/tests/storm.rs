//! Many tasks on several threads, in real time, against a backend that comes and goes.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tokio::task::JoinSet;

use super::*;

const TASKS: usize = 64;

/// The actions and results of the callers.
struct Storm {
    connection: Managed<MockBackend>,
    failing: AtomicBool,
    over: AtomicBool,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    met_backend: AtomicUsize,
    /// Calls that each task has made.
    calls: Vec<AtomicU64>,
}

impl Storm {
    async fn begin(policies: Policies) -> Arc<Self> {
        let connection = managed(Startup::Wait, &Arc::default());
        // Probes would close the breaker, so that callers come in crowds again.
        let probe = Probe { interval: Duration::from_hours(1), ..Probe::default() };
        connection.configure(Settings { policies, probe, ..settings(Startup::Wait) });
        connection.started().await.unwrap();
        Arc::new(Self {
            connection,
            failing: AtomicBool::new(false),
            over: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            met_backend: AtomicUsize::new(0),
            calls: (0..TASKS).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    async fn meet(&self) -> Result<(), Error> {
        let in_flight = self.in_flight.fetch_add(1, SeqCst) + 1;
        self.most_in_flight.fetch_max(in_flight, SeqCst);
        self.met_backend.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        self.in_flight.fetch_sub(1, SeqCst);
        if self.failing.load(SeqCst) {
            return Err(Error::new(ErrorKind::Disconnected, "it went away"));
        }
        Ok(())
    }

    async fn call_until_over(&self, task: usize) {
        while !self.over.load(SeqCst) {
            let _good_or_not = self.connection.client().call(CALL, |_| self.meet()).await.is_ok();
            self.calls[task].fetch_add(1, SeqCst);
            tokio::task::yield_now().await;
        }
    }

    /// Until every task has ended the call that it is in now.
    async fn calls_of_now_ended(&self) {
        let before: Vec<u64> = self.calls.iter().map(|calls| calls.load(SeqCst)).collect();
        let now = || self.calls.iter().map(|calls| calls.load(SeqCst));
        in_time("all tasks come on", || now().zip(&before).all(|(now, before)| now > *before))
            .await;
    }

    async fn reaches(&self, circuit: Circuit) {
        in_time(circuit.as_str(), || self.connection.report().circuit == circuit).await;
    }
}

async fn in_time(what: &str, holds: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}: not in time");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_callers_never_makes_more_trials_than_it_may() {
    const TRIALS: usize = 3;
    let mut policies = Policies::default();
    policies.retry.max_attempts = 1;
    policies.circuit_breaker.half_open_calls = TRIALS.try_into().unwrap();
    policies.circuit_breaker.window = Duration::from_millis(100);
    policies.circuit_breaker.open_for = Duration::from_millis(2);
    policies.circuit_breaker.max_open_for = Duration::from_millis(4);
    let storm = Storm::begin(policies).await;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let storm = Arc::clone(&storm);
        tasks.spawn(async move { storm.call_until_over(task).await });
    }
    for round in 0..10 {
        storm.failing.store(true, SeqCst);
        storm.reaches(Circuit::Open).await;
        // From here to the next good trial whatever reaches the backend is a trial.
        storm.calls_of_now_ended().await;
        storm.most_in_flight.store(0, SeqCst);
        let before = storm.met_backend.load(SeqCst);
        in_time("it is tried", || storm.met_backend.load(SeqCst) > before + 10 * TRIALS).await;
        let most = storm.most_in_flight.load(SeqCst);
        assert!((1..=TRIALS).contains(&most), "{most} trials at once in round {round}");
        storm.failing.store(false, SeqCst);
        storm.reaches(Circuit::Closed).await;
    }
    storm.over.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    assert_eq!(storm.connection.report().in_use, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_that_blocks_its_thread_is_seen_and_so_is_its_end() {
    let world = Arc::new(World::default());
    let connection = managed(Startup::Background, &world);
    let probe = Probe { interval: Duration::from_millis(20), ..Probe::default() };
    connection.configure(Settings { probe, ..settings(Startup::Background) });
    in_time("it works", || connection.report().service == Service::Initialized).await;
    assert!(!connection.report().stalled);
    world.blocks.store(true, SeqCst);
    in_time("it is seen", || connection.report().stalled).await;
    world.blocks.store(false, SeqCst);
    in_time("it goes on", || !connection.report().stalled).await;
}
