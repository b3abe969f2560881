//! The guard around calls whose outcome the test decides. Time is paused.

use std::sync::atomic::AtomicU32;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{config::Jitter, connection::context::within, telemetry::metrics::Metrics};

const READ: Operation = Operation::idempotent("read");
const START: Operation = Operation::once("start");

struct World {
    metrics: Arc<Metrics>,
    timeline: Arc<Timeline>,
    guard: Guard,
    attempts: AtomicU32,
}

impl World {
    fn new(change: impl FnOnce(&mut Policies)) -> Self {
        let metrics = Metrics::new("0", "0");
        let timeline = Arc::<Timeline>::default();
        let guard = Guard::new("database", metrics.connection("database"), Arc::clone(&timeline));
        let mut policies = Policies::default();
        policies.retry.jitter = Jitter::None;
        change(&mut policies);
        guard.configure(&policies);
        Self { metrics, timeline, guard, attempts: AtomicU32::new(0) }
    }

    /// Calls with an attempt that fails as the list says, and then is good.
    async fn call(&self, operation: Operation, errors: &[Error]) -> Result<u32, Error> {
        let begin = self.attempts.load(Ordering::SeqCst);
        let attempt = || async {
            let number = self.attempts.fetch_add(1, Ordering::SeqCst) - begin;
            match errors.get(number as usize) {
                Some(error) => Err(error.clone()),
                None => Ok(number + 1),
            }
        };
        self.guard.run(operation, attempt).await
    }

    fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::SeqCst)
    }

    fn metric(&self, series: &str) -> String {
        self.guard.metrics.show_breaker(self.guard.circuit());
        let text = self.metrics.text();
        let line = text.lines().find(|line| line.starts_with(&format!("agentarea_{series} ")));
        line.and_then(|line| line.rsplit_once(' ')).expect(series).1.to_owned()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn refused() -> Error {
    Error::new(ErrorKind::Refused, "nobody listens")
}

fn lost() -> Error {
    Error::new(ErrorKind::Disconnected, "the answer was lost")
}

#[tokio::test(start_paused = true)]
async fn a_stuck_attempt_ends_at_its_timeout_with_unknown_outcome() {
    let world = World::new(|policies| {
        policies.timeout = Timeout { attempt: seconds(2), total: seconds(10) }
    });
    let begin = Instant::now();
    let result: Result<(), _> = world.guard.run(START, std::future::pending).await;
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.outcome_unknown());
    assert_eq!(begin.elapsed().as_secs(), 2);
    assert_eq!(world.metric(r#"call_errors_total{connection="database",class="timeout"}"#), "1");
}

#[tokio::test(start_paused = true)]
async fn the_total_timeout_bounds_all_attempts_and_pauses() {
    let world = World::new(|policies| {
        policies.timeout = Timeout { attempt: seconds(2), total: seconds(5) }
    });
    let begin = Instant::now();
    let result: Result<(), _> = world.guard.run(READ, std::future::pending).await;
    assert!(result.is_err());
    assert_eq!(begin.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_clamps_attempts_and_the_queue() {
    let world = World::new(|policies| policies.concurrency.max_in_flight = 1);
    let begin = Instant::now();
    let stuck = || world.guard.run(START, std::future::pending::<Result<(), Error>>);
    let error = within(begin + seconds(1), stuck()).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed().as_secs()), (ErrorKind::Timeout, 1));

    let hurried = async {
        let queued = world.guard.run(READ, || async { Ok(()) });
        let error = within(begin + seconds(2), queued).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (ErrorKind::Overloaded, 2));
    };
    let (_holds_the_only_place, ()) = tokio::join!(stuck(), hurried);
}

#[tokio::test(start_paused = true)]
async fn only_what_cannot_have_its_effect_twice_is_repeated() {
    let world = World::new(|_| {});
    assert_eq!(world.call(READ, &[lost(), refused()]).await.unwrap(), 3);
    assert_eq!(world.call(START, &[refused()]).await.unwrap(), 2, "it was not sent");
    let error = world.call(START, &[lost()]).await.unwrap_err();
    assert!(error.outcome_unknown());
    let bad = Error::new(ErrorKind::InvalidInput, "no");
    assert_eq!(world.call(READ, &[bad]).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(world.attempts(), 3 + 2 + 1 + 1);
    assert_eq!(world.metric(r#"call_retries_total{connection="database"}"#), "3");
}

#[tokio::test(start_paused = true)]
async fn a_later_refusal_does_not_undo_what_an_earlier_attempt_may_have_done() {
    let world = World::new(|_| {});
    let error = world.call(READ, &[lost(), refused(), refused()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.outcome_unknown());
    let taken = Error::new(ErrorKind::AlreadyExists, "the backend knows it");
    let error = world.call(READ, &[lost(), taken]).await.unwrap_err();
    assert!(!error.outcome_unknown(), "the backend's own answer stands");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_keep_what_the_backend_asks_for() {
    let world = World::new(|policies| policies.retry.max_attempts = 4);
    let begin = Instant::now();
    let later = refused().with_retry_after(seconds(1));
    world.call(READ, &[refused(), refused(), later]).await.unwrap();
    assert_eq!(begin.elapsed().as_millis(), 50 + 100 + 1000);
    // A pause that would outlast the call is not made.
    let much_later = refused().with_retry_after(seconds(60));
    let begin = Instant::now();
    assert!(world.call(READ, &[much_later]).await.is_err());
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_multiplied_beyond_the_budget() {
    let world = World::new(|policies| {
        policies.circuit_breaker.enabled = false;
        policies.retry.budget.min_per_second = 1;
        policies.retry.budget.ratio = 0.1;
    });
    let outage = [refused(), refused(), refused()];
    join_all((0..1000).map(|_| world.call(READ, &outage))).await;
    let retries: u32 =
        world.metric(r#"call_retries_total{connection="database"}"#).parse().unwrap();
    assert!((50..=120).contains(&retries), "{retries} retries of 1000 calls at a tenth");
}

#[tokio::test(start_paused = true)]
async fn while_the_probes_find_it_down_nothing_is_repeated() {
    let world = World::new(|_| {});
    world.guard.probed(false, true, 1);
    assert!(world.call(READ, &[refused()]).await.is_err());
    world.guard.probed(true, false, 1);
    assert!(world.call(READ, &[refused()]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_answers_at_once_and_says_when_to_come_back() {
    let world = World::new(|policies| policies.retry.max_attempts = 1);
    for _ in 0..20 {
        world.call(READ, &[refused()]).await.unwrap_err();
    }
    assert_eq!(world.guard.circuit(), Circuit::Open);
    let (begin, attempts) = (Instant::now(), world.attempts());
    for _ in 0..1000 {
        let error = world.call(READ, &[]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CircuitOpen);
        let retry_after = error.retry_after().unwrap();
        assert!((seconds(4)..=seconds(5)).contains(&retry_after), "{retry_after:?}");
        assert!(!error.outcome_unknown());
    }
    assert_eq!((Instant::now(), world.attempts()), (begin, attempts));
    let rejected = r#"call_rejected_total{connection="database",reason="circuit_open"}"#;
    assert_eq!(world.metric(rejected), "1000");
    assert_eq!(world.metric(r#"circuit_breaker_state{connection="database",state="open"}"#), "1");
    assert_eq!(world.metric(r#"circuit_breaker_state{connection="database",state="closed"}"#), "0");
    let change = &world.timeline.last()[0];
    assert_eq!(
        (change.from, change.to, &*change.cause),
        ("closed", "open", "20 of 20 calls failed")
    );

    sleep(seconds(5)).await;
    for _ in 0..3 {
        world.call(READ, &[]).await.unwrap();
    }
    assert_eq!(world.guard.circuit(), Circuit::Closed);
    let transitions = r#"circuit_breaker_transitions_total{connection="database",to="closed"}"#;
    assert_eq!(world.metric(transitions), "1");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_between_attempts_ends_the_call_with_the_backends_error() {
    let world = World::new(|policies| policies.circuit_breaker.minimum_calls = 2);
    let error = world.call(READ, &[refused(), refused(), refused()]).await.unwrap_err();
    assert_eq!((error.kind(), world.attempts()), (ErrorKind::Refused, 2));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_call_itself_is_not_the_backends_fault() {
    let world = World::new(|policies| policies.circuit_breaker.minimum_calls = 2);
    let not_its_fault = [
        ErrorKind::InvalidInput,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Forbidden,
        ErrorKind::Busy,
        ErrorKind::Overloaded,
        ErrorKind::CircuitOpen,
    ];
    for kind in not_its_fault {
        let error = Error::new(kind, "no").with_retry(RetryClass::Never);
        for _ in 0..10 {
            world.call(START, std::slice::from_ref(&error)).await.unwrap_err();
        }
    }
    let worker_is_busy = Error::new(ErrorKind::Timeout, "no worker answered");
    for _ in 0..10 {
        let query = Operation::passed_on("query");
        world.call(query, std::slice::from_ref(&worker_is_busy)).await.unwrap_err();
    }
    assert_eq!(world.guard.circuit(), Circuit::Closed);
}

/// A full pool hides an outage from those that wait in it; their results would make it look small.
#[tokio::test(start_paused = true)]
async fn what_never_met_the_backend_weighs_nothing() {
    let world = World::new(|policies| policies.circuit_breaker.minimum_calls = 2);
    let full = Error::new(ErrorKind::Overloaded, "the pool is full");
    for _ in 0..100 {
        world.call(START, std::slice::from_ref(&full)).await.unwrap_err();
    }
    world.call(START, &[refused(), refused(), refused()]).await.unwrap_err();
    assert_eq!(world.guard.circuit(), Circuit::Open);
    sleep(seconds(5)).await;
    for _ in 0..10 {
        world.call(START, std::slice::from_ref(&full)).await.unwrap_err();
    }
    assert_eq!(world.guard.circuit(), Circuit::HalfOpen, "no trial was good");
}

#[tokio::test(start_paused = true)]
async fn a_caller_without_time_reaches_no_backend() {
    let world = World::new(|_| {});
    let error = within(Instant::now(), world.call(START, &[])).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome_unknown()), (ErrorKind::Timeout, false));
    assert_eq!(world.attempts(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_a_hurry_says_nothing_of_the_backend() {
    let world = World::new(|policies| policies.circuit_breaker.minimum_calls = 2);
    for _ in 0..10 {
        let stuck = world.guard.run(START, std::future::pending::<Result<(), Error>>);
        let soon = Instant::now() + Duration::from_millis(5);
        within(soon, stuck).await.unwrap_err();
    }
    assert_eq!(world.guard.circuit(), Circuit::Closed);
    for _ in 0..2 {
        let stuck = world.guard.run(START, std::future::pending::<Result<(), Error>>);
        stuck.await.unwrap_err();
    }
    assert_eq!(world.guard.circuit(), Circuit::Open);
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_limit_are_refused_with_a_time_to_come_back() {
    let world = World::new(|policies| {
        policies.concurrency = Concurrency { max_in_flight: 2, max_waiting: 1 };
    });
    let slow = || {
        world.guard.run(READ, || async {
            sleep(seconds(1)).await;
            Ok(())
        })
    };
    let results = join_all((0..5).map(|_| slow())).await;
    let refused: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 2, "two in flight, one waits");
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Overloaded);
        assert!(error.retry_after().is_some());
    }
    let rejected = r#"call_rejected_total{connection="database",reason="queue_full"}"#;
    assert_eq!(world.metric(rejected), "2");
}

#[tokio::test(start_paused = true)]
async fn dropped_callers_leave_no_place_and_no_trial_behind() {
    let world = World::new(|policies| {
        policies.concurrency = Concurrency { max_in_flight: 3, max_waiting: 3 };
        policies.circuit_breaker.minimum_calls = 1;
        policies.retry.max_attempts = 1;
    });
    world.call(READ, &[refused()]).await.unwrap_err();
    assert_eq!(world.guard.circuit(), Circuit::Open);
    sleep(seconds(5)).await;
    for _ in 0..100 {
        let stuck = world.guard.run(READ, std::future::pending::<Result<(), Error>>);
        let gone = timeout(Duration::from_millis(1), stuck).await;
        assert!(gone.is_err(), "the trial was admitted");
    }
    for _ in 0..3 {
        world.call(READ, &[]).await.unwrap();
    }
    assert_eq!(world.guard.circuit(), Circuit::Closed);
}

#[tokio::test(start_paused = true)]
async fn policies_change_while_calls_run() {
    let world = World::new(|policies| {
        policies.timeout = Timeout { attempt: seconds(5), total: seconds(9) }
    });
    let running = world.guard.run(START, std::future::pending::<Result<(), Error>>);
    let change = async {
        sleep(seconds(1)).await;
        let timeout = Timeout { attempt: seconds(1), total: seconds(1) };
        world.guard.configure(&Policies { timeout, ..Policies::default() });
    };
    let begin = Instant::now();
    let (result, ()) = tokio::join!(running, change);
    assert!(result.is_err());
    assert_eq!(begin.elapsed().as_secs(), 5, "it ends under the policies it began under");
    let next = world.guard.run(START, std::future::pending::<Result<(), Error>>);
    next.await.unwrap_err();
    assert_eq!(begin.elapsed().as_secs(), 6);
}
