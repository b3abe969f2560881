//! The one path of every request/response call to a backend.
//!
//! A call passes, from the outside in:
//!
//! ```text
//! total timeout { concurrency limit → retry { circuit breaker { attempt timeout { call }}}}
//! ```
//!
//! - The total timeout is outermost, because it is what the caller was promised: waiting for a
//!   place, all attempts and the pauses between them lie inside. The caller's own deadline, if
//!   sooner, takes its place.
//! - The limit stands before the retry, so that a call holds one place however often it is tried.
//! - The retry stands before the breaker, so that each attempt is counted, and repeated attempts
//!   stop as soon as the breaker opens.
//! - The breaker stands before the attempt timeout, so that an attempt that was cut off counts.
//! - Taking a pooled connection belongs to the attempt: waiting for one is waiting.
//!
//! Nothing below repeats anything: drivers have their own retries switched off.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    task::coop::unconstrained,
    time::{Instant, sleep},
};

use super::{
    breaker::{Breaker, Change, Force, Pass, Refusal, Sample},
    budget::Budget,
    context::{self, Attempt},
    limit::{self, Limit},
    operation::Operation,
    report::Circuit,
    timeline::{Subject, Timeline, Transition},
};
use crate::{
    config::{CircuitBreaker, Concurrency, Jitter, Retry, Timeout},
    error::{Error, ErrorKind, RetryClass},
    model::{
        backoff::{Backoff, jittered},
        chance::chance,
        time,
    },
    telemetry::metrics::{ConnectionMetrics, Outcome, Rejection},
};

/// The settings that the guard applies, from `[<connection>.…]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// Time limits of calls.
    pub timeout: Timeout,
    /// Retries of attempts.
    pub retry: Retry,
    /// The circuit breaker.
    pub circuit_breaker: CircuitBreaker,
    /// Limits on concurrent and waiting calls.
    pub concurrency: Concurrency,
}

/// The policies with their state.
#[derive(Debug)]
struct Applied {
    policies: Policies,
    slow_after: Duration,
    budget: Arc<Budget>,
    limit: Arc<Limit>,
}

impl Applied {
    fn new(policies: Policies, now: Instant) -> Self {
        Self {
            slow_after: policies.circuit_breaker.slow_after(policies.timeout.attempt),
            budget: Arc::new(Budget::new(&policies.retry.budget, now)),
            limit: Arc::new(Limit::new(&policies.concurrency)),
            policies,
        }
    }

    /// New policies; unchanged parts keep their state.
    fn replaced(&self, policies: Policies, now: Instant) -> Self {
        let mut new = Self::new(policies, now);
        if new.policies.retry.budget == self.policies.retry.budget {
            new.budget = Arc::clone(&self.budget);
        }
        if new.policies.concurrency == self.policies.concurrency {
            new.limit = Arc::clone(&self.limit);
        }
        new
    }
}

/// Applies a connection's policies to its calls, and counts them.
#[derive(Debug)]
pub(super) struct Guard {
    connection: &'static str,
    applied: ArcSwap<Applied>,
    breaker: Breaker,
    /// True while probes find the backend down, when a retry would only delay the answer.
    known_down: AtomicBool,
    metrics: ConnectionMetrics,
    timeline: Arc<Timeline>,
}

impl Guard {
    pub(super) fn new(
        connection: &'static str,
        metrics: ConnectionMetrics,
        timeline: Arc<Timeline>,
    ) -> Self {
        let (policies, now) = (Policies::default(), Instant::now());
        Self {
            connection,
            breaker: Breaker::new(policies.circuit_breaker.clone(), now),
            applied: ArcSwap::from_pointee(Applied::new(policies, now)),
            known_down: AtomicBool::new(false),
            metrics,
            timeline,
        }
    }

    /// Applies new policies. Running calls end under the old ones.
    pub(super) fn configure(&self, policies: &Policies) {
        let now = Instant::now();
        let change = self.breaker.configure(policies.circuit_breaker.clone(), now);
        self.applied.rcu(|applied| applied.replaced(policies.clone(), now));
        self.announce(change, None);
    }

    /// Records the result of a probe.
    pub(super) fn probed(&self, good: bool, down: bool, healthy_after: u32) {
        let now = Instant::now();
        let was_down = self.known_down.swap(down, Ordering::Relaxed);
        if was_down && !down {
            self.breaker.recovered(now);
        }
        self.announce(self.breaker.probed(good, healthy_after, now), None);
    }

    pub(super) fn force(&self, force: Force) {
        self.announce(self.breaker.force(force, Instant::now()), None);
    }

    pub(super) fn circuit(&self) -> Circuit {
        self.breaker.circuit()
    }

    /// How full the retry budget is, 0 to 1.
    pub(super) fn budget_available(&self) -> f64 {
        self.applied.load().budget.available(Instant::now())
    }

    /// Runs `attempt` under the policies.
    ///
    /// # Cancel safety
    /// Dropping the future frees its place and its trial. Whether the call had its effect is
    /// unknown.
    pub(super) async fn run<T, F, Fut>(&self, operation: Operation, attempt: F) -> Result<T, Error>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let begin = Instant::now();
        let applied = self.applied.load();
        let own_deadline = begin + applied.policies.timeout.total;
        let deadline = context::deadline().map_or(own_deadline, |outer| outer.min(own_deadline));
        let call = Call { guard: self, applied: &applied, operation, deadline };
        let (result, end) = call.run(begin, &attempt).await;
        self.metrics.call(operation.name, Outcome::of(&result), end - begin);
        result.map_err(|error| error.in_operation(operation.name))
    }

    fn admit(&self, now: Instant) -> Result<Pass<'_>, Error> {
        let (pass, change) = self.breaker.admit(now);
        self.announce(change, None);
        pass.map_err(|Refusal { retry_after }| {
            self.metrics.call_rejected.of(Rejection::CircuitOpen).inc();
            Error::new(ErrorKind::CircuitOpen, "the circuit breaker lets no call pass")
                .with_retry_after(retry_after)
        })
    }

    /// A state is logged when it changes, not for each call that meets it.
    #[inline]
    fn announce(&self, change: Option<Change>, error: Option<ErrorKind>) {
        if let Some(change) = change {
            self.tell(change, error);
        }
    }

    #[cold]
    fn tell(&self, change: Change, error: Option<ErrorKind>) {
        let Change { from, to, cause, lasted } = change;
        let (connection, state) = (self.connection, to.as_str());
        let lasted_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
        if to == Circuit::Open {
            tracing::warn!(connection, to = state, cause, lasted_ms, "the breaker is {state}");
        } else {
            tracing::info!(connection, to = state, cause, lasted_ms, "the breaker is {state}");
        }
        self.metrics.breaker_transitions.of(to).inc();
        self.timeline.push(Transition {
            at: time::now(),
            subject: Subject::CircuitBreaker,
            from: from.as_str(),
            to: state,
            cause: cause.into(),
            error,
            lasted,
        });
    }
}

/// One call on its way through the guard.
struct Call<'a> {
    guard: &'a Guard,
    applied: &'a Applied,
    operation: Operation,
    deadline: Instant,
}

/// A result, and when it was there: reading the clock is a good part of what a call costs, so that
/// nobody reads it twice for the same moment.
type Timed<T> = (Result<T, Error>, Instant);

impl Call<'_> {
    async fn run<T, F, Fut>(&self, called_at: Instant, attempt: &F) -> Timed<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let (_place, mut begin) = match self.applied.limit.try_acquire() {
            Some(place) => (place, called_at),
            None => match self.applied.limit.wait(self.deadline).await {
                Ok(place) => (place, Instant::now()),
                Err(reason) => {
                    self.guard.metrics.call_rejected.of(reason).inc();
                    return (Err(limit::rejected(reason)), Instant::now());
                }
            },
        };
        self.applied.budget.deposit();
        let mut last: Option<Error> = None;
        for number in 1.. {
            let (result, end) = self.attempt(number, begin, attempt).await;
            let error = match result {
                Ok(value) => return (Ok(value), end),
                // The breaker opened between two attempts, so the error of the last one is more
                // specific.
                Err(error) if error.kind() == ErrorKind::CircuitOpen => last.unwrap_or(error),
                Err(error) => {
                    let error = after(last, error);
                    if let Some(pause) = self.pause_after(number, &error, end) {
                        self.guard.metrics.call_retries.inc();
                        sleep(pause).await;
                        last = Some(error);
                        begin = Instant::now();
                        continue;
                    }
                    error
                }
            };
            return (Err(error), end);
        }
        unreachable!("there are more numbers than attempts")
    }

    async fn attempt<T, F, Fut>(&self, number: u32, begin: Instant, attempt: &F) -> Timed<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let Call { guard, applied, operation, .. } = self;
        let pass = match guard.admit(begin) {
            Ok(pass) => pass,
            Err(refused) => return (Err(refused), begin),
        };
        let limit = applied.policies.timeout.attempt.min(self.deadline - begin);
        if limit.is_zero() {
            let message = "there was no time left to try";
            let error = Error::new(ErrorKind::Timeout, message).with_retry(RetryClass::NotSent);
            return (Err(error), begin);
        }
        guard.metrics.call_attempts.inc();
        let span = tracing::debug_span!(
            "attempt",
            connection = guard.connection,
            operation = operation.name,
            number
        );
        let attempt = Attempt::new(operation.name, span, attempt());
        let result = bounded(limit, attempt).await;
        let end = Instant::now();
        let slow = end - begin >= applied.slow_after;
        let failed = result.as_ref().is_err_and(|error| operation.blames_backend(error));
        // Neither an attempt that met a limit of our own says anything of the backend, nor one that
        // was cut off because its caller's deadline left it less time than a slow call.
        let met_backend = !result.as_ref().is_err_and(|error| error.kind().is_own_limit());
        if met_backend && (!failed || slow || limit >= applied.slow_after) {
            let kind = result.as_ref().err().map(Error::kind).filter(|_| failed);
            guard.announce(pass.finish(Sample { failed, slow }, end), kind);
        }
        if let Err(error) = &result {
            guard.metrics.call_errors.of(error.kind()).inc();
        }
        (result, end)
    }

    /// The pause before the next attempt, if there is to be one.
    fn pause_after(&self, number: u32, error: &Error, now: Instant) -> Option<Duration> {
        let retry = &self.applied.policies.retry;
        let pointless = self.guard.known_down.load(Ordering::Relaxed);
        if number >= retry.max_attempts || pointless || !self.operation.may_be_repeated_after(error)
        {
            return None;
        }
        let pause =
            pause_before(retry, number, chance()).max(error.retry_after().unwrap_or_default());
        (now + pause < self.deadline && self.applied.budget.withdraw(now)).then_some(pause)
    }
}

/// The pause before the retry number `retry`, from one. `chance` lies in 0..1. Full jitter takes any
/// time up to the exponential one.
fn pause_before(policy: &Retry, retry: u32, chance: f64) -> Duration {
    let Retry { initial_backoff, multiplier, max_backoff, jitter, .. } = *policy;
    let backoff = Backoff { initial: initial_backoff, multiplier, max: max_backoff };
    let pause = backoff.pause_after(retry);
    match jitter {
        Jitter::Full => jittered(pause, 0.0, chance),
        Jitter::None => pause,
    }
}

/// The error of a call whose attempts failed: what an earlier attempt may have done is not undone
/// by a later one that did not reach the backend.
fn after(earlier: Option<Error>, error: Error) -> Error {
    let maybe_done = earlier.is_some_and(|earlier| earlier.outcome_unknown());
    if maybe_done && error.kind().is_outage() {
        return error.with_retry(RetryClass::MaybeSent);
    }
    error
}

/// A timeout after which the backend may still complete the call.
pub(super) async fn bounded<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let mut future = pin!(future);
    let mut time_up = pin!(None);
    poll_fn(|context| {
        if let Poll::Ready(result) = future.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        if time_up.is_none() {
            // Not before there is something to wait for: what answers at once needs no timer.
            // It ends even if the future never leaves the task any budget.
            time_up.set(Some(unconstrained(sleep(limit))));
        }
        let Some(time_up) = time_up.as_mut().as_pin_mut() else { return Poll::Pending };
        time_up.poll(context).map(|()| {
            let message = format!("no answer within {}", humantime::format_duration(limit));
            Err(Error::new(ErrorKind::Timeout, message).with_retry(RetryClass::MaybeSent))
        })
    })
    .await
}

#[cfg(test)]
mod tests;
