//! The policies that the guard of a connection applies to each call.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{
    problem::SectionProblems,
    values::{duration, optional_duration},
};

/// Time limits of calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Timeout {
    /// Time for one attempt, from taking a pooled connection to the answer. At most `total`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "10m"))]
    pub attempt: Duration,
    /// Time for the whole call: waiting for a free slot, all attempts, and the pauses between them.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "10m"))]
    pub total: Duration,
}

impl Default for Timeout {
    fn default() -> Self {
        Self { attempt: Duration::from_secs(5), total: Duration::from_secs(10) }
    }
}

impl Timeout {
    pub(super) fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        if self.attempt > self.total {
            problems.add_conflict(
                "timeout.attempt",
                &["timeout.total"],
                format!(
                    "one attempt ({:?}) may not take longer than the whole call (timeout.total, {:?})",
                    self.attempt, self.total
                ),
            );
        }
    }
}

/// Retries of failed attempts. An operation that may have reached the backend is retried only if it
/// is idempotent; a bad request is never retried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Retry {
    /// The most attempts of one call, including the first; 1 disables retries.
    #[schemars(range(min = 1, max = 20))]
    pub max_attempts: u32,
    /// The pause before the second attempt.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "1m"))]
    pub initial_backoff: Duration,
    /// The longest pause.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "10m"))]
    pub max_backoff: Duration,
    /// The factor by which each pause is longer than the one before.
    #[schemars(range(min = 1.0, max = 10.0))]
    pub multiplier: f64,
    /// `full` waits a random part of each pause, so that callers that failed together do not retry
    /// together. `none` waits the whole pause.
    pub jitter: Jitter,
    /// Limits retries to a share of the calls, so that retries do not multiply the load of an
    /// outage.
    pub budget: RetryBudget,
}

/// The jitter of a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Jitter {
    /// A random time up to the pause.
    Full,
    /// The pause itself.
    None,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(2),
            multiplier: 2.0,
            jitter: Jitter::Full,
            budget: RetryBudget::default(),
        }
    }
}

impl Retry {
    pub(super) fn validate(&self, total: Duration, problems: &mut SectionProblems<'_, '_>) {
        if self.initial_backoff > self.max_backoff {
            problems.add_conflict(
                "retry.initial_backoff",
                &["retry.max_backoff"],
                format!(
                    "the first pause ({:?}) may not exceed the longest (retry.max_backoff, {:?})",
                    self.initial_backoff, self.max_backoff
                ),
            );
        }
        if self.max_attempts > 1 && self.initial_backoff >= total {
            problems.add_conflict(
                "retry.initial_backoff",
                &["timeout.total", "retry.max_attempts"],
                format!(
                    "a pause as long as the whole call (timeout.total, {total:?}) leaves no second attempt; \
                     shorten it or set retry.max_attempts to 1"
                ),
            );
        }
    }
}

/// Retries as a share of the calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct RetryBudget {
    /// Retries for each call: 0.2 allows one retry for every five calls.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub ratio: f64,
    /// Retries allowed each second regardless of the traffic.
    #[schemars(range(min = 0, max = 10_000))]
    pub min_per_second: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { ratio: 0.2, min_per_second: 10 }
    }
}

/// Stops calling a backend that fails, and tries again by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct CircuitBreaker {
    /// `false` lets every call pass, however many calls have failed.
    pub enabled: bool,
    /// The breaker opens when this share of the calls in `window` failed. A refused request (bad
    /// input, not found) does not count as a failure.
    #[schemars(range(min = 0.01, max = 1.0))]
    pub failure_rate: f64,
    /// The breaker opens when this share of the calls in `window` took `slow_call` or longer.
    #[schemars(range(min = 0.01, max = 1.0))]
    pub slow_call_rate: f64,
    /// The duration from which a call counts as slow; half of `timeout.attempt` if unset. Must be
    /// less than `timeout.attempt`, at which a call fails anyway.
    #[serde(with = "optional_duration")]
    #[schemars(schema_with = "optional_duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "10m"))]
    pub slow_call: Option<Duration>,
    /// The time over which calls are counted.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "10m"))]
    pub window: Duration,
    /// The breaker does not open while there are fewer calls in `window`.
    #[schemars(range(min = 1, max = 100_000))]
    pub minimum_calls: u32,
    /// How long the breaker stays open before trial calls, shortened at random by up to a fifth.
    /// The time doubles whenever the trial calls fail, up to `max_open_for`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "10m"))]
    pub open_for: Duration,
    /// The longest time the breaker stays open. A successful probe closes it earlier.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "1h"))]
    pub max_open_for: Duration,
    /// Trial calls that must succeed before the breaker closes again; one failure opens it at once.
    #[schemars(range(min = 1, max = 1000))]
    pub half_open_calls: u32,
    /// How long the breaker waits for these trial calls. After that, the calls made so far decide.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "10m"))]
    pub half_open_timeout: Duration,
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_rate: 0.5,
            slow_call_rate: 1.0,
            slow_call: None,
            window: Duration::from_secs(30),
            minimum_calls: 20,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_mins(1),
            half_open_calls: 3,
            half_open_timeout: Duration::from_secs(30),
        }
    }
}

impl CircuitBreaker {
    /// The duration from which a call counts as slow, if an attempt may take `attempt`.
    #[must_use]
    pub fn slow_after(&self, attempt: Duration) -> Duration {
        self.slow_call.unwrap_or(attempt / 2)
    }

    pub(super) fn validate(
        &self,
        attempt: Duration,
        max_in_flight: usize,
        problems: &mut SectionProblems<'_, '_>,
    ) {
        if !self.enabled {
            return;
        }
        let mut add = |key: &str, other: &str, message: String| {
            let others = [other, "circuit_breaker.enabled"];
            problems.add_conflict(&format!("circuit_breaker.{key}"), &others, message);
        };
        if self.open_for > self.max_open_for {
            add(
                "open_for",
                "circuit_breaker.max_open_for",
                format!("may not exceed circuit_breaker.max_open_for ({:?})", self.max_open_for),
            );
        }
        if self.slow_call.is_some_and(|slow_call| slow_call >= attempt) {
            add(
                "slow_call",
                "timeout.attempt",
                format!(
                    "must be less than timeout.attempt ({attempt:?}), or no call could ever be slow"
                ),
            );
        }
        if usize::try_from(self.half_open_calls).is_ok_and(|trials| trials > max_in_flight) {
            let reason = "or its trial calls could not run at the same time";
            add(
                "half_open_calls",
                "concurrency.max_in_flight",
                format!("may not exceed concurrency.max_in_flight ({max_in_flight}), {reason}"),
            );
        }
        if self.half_open_timeout < attempt {
            let reason = "or trial calls would be abandoned before they can end";
            add(
                "half_open_timeout",
                "timeout.attempt",
                format!("may not be less than timeout.attempt ({attempt:?}), {reason}"),
            );
        }
    }
}

/// Limits calls in flight, so that a slow backend does not exhaust memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Concurrency {
    /// The most concurrent calls; further calls wait.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_in_flight: usize,
    /// The most calls that wait, each until its `timeout.total`; further calls are refused at once.
    /// 0 disables waiting.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub max_waiting: usize,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { max_in_flight: 1024, max_waiting: 10_000 }
    }
}
