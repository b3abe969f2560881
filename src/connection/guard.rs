//! The one path of every request/response call to a backend.
//!
//! A call passes, from the outside in: total timeout { attempt timeout { acquire, call } }. The
//! attempt timeout lies inside, so that one stuck attempt cannot use up the time of the whole
//! call once attempts are repeated; acquiring lies inside the attempt, because waiting for a
//! connection is part of what the caller waits for. Concurrency limit, retry and circuit breaker
//! have their places between the two timeouts.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    config::Timeout,
    error::{Error, ErrorKind, RetryClass},
    telemetry::metrics::{ConnectionMetrics, Outcome},
};

/// What is called, for policies, metrics and error texts.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its name, such as `publish`.
    pub name: &'static str,
    /// Whether repeating it after it may have reached the backend changes nothing.
    pub idempotent: bool,
}

impl Operation {
    /// An operation that may be repeated.
    #[must_use]
    pub const fn idempotent(name: &'static str) -> Self {
        Self { name, idempotent: true }
    }

    /// An operation whose repetition could have its effect twice.
    #[must_use]
    pub const fn once(name: &'static str) -> Self {
        Self { name, idempotent: false }
    }
}

/// Applies a connection's policies to its calls, and counts them.
#[derive(Debug)]
pub(super) struct Guard {
    metrics: ConnectionMetrics,
}

impl Guard {
    pub(super) fn new(metrics: ConnectionMetrics) -> Self {
        Self { metrics }
    }

    /// Runs `attempt` under the policies.
    pub(super) async fn run<T, F, Fut>(
        &self,
        policy: &Timeout,
        operation: Operation,
        attempt: F,
    ) -> Result<T, Error>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let begin = Instant::now();
        let result = bounded(policy.total, self.attempt(policy, &attempt)).await;
        self.metrics.call(operation.name, Outcome::of(&result), begin.elapsed());
        result.map_err(|error| error.in_operation(operation.name))
    }

    async fn attempt<T, F, Fut>(&self, policy: &Timeout, attempt: &F) -> Result<T, Error>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.metrics.call_attempts.inc();
        let result = bounded(policy.attempt, attempt()).await;
        if let Err(error) = &result {
            self.metrics.error(error.kind());
        }
        result
    }
}

/// A timeout after which the backend may still do what was asked.
pub(super) async fn bounded<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, future).await.unwrap_or_else(|_| {
        let message = format!("no answer within {}", humantime::format_duration(limit));
        Err(Error::new(ErrorKind::Timeout, message).with_retry(RetryClass::MaybeSent))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn guard() -> (std::sync::Arc<Metrics>, Guard) {
        let metrics = Metrics::new("0", "0");
        let guard = Guard::new(metrics.connection("database"));
        (metrics, guard)
    }

    fn policy(attempt: u64, total: u64) -> Timeout {
        Timeout { attempt: Duration::from_secs(attempt), total: Duration::from_secs(total) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_attempt_ends_at_its_timeout_with_unknown_outcome() {
        let (metrics, guard) = guard();
        let begin = Instant::now();
        let operation = Operation::once("start");
        let result: Result<(), _> =
            guard.run(&policy(2, 10), operation, std::future::pending).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.outcome_unknown());
        assert_eq!(begin.elapsed().as_secs(), 2);
        let text = metrics.text();
        assert!(
            text.contains(
                r#"agentarea_call_errors_total{connection="database",class="timeout"} 1"#
            )
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_timeout_clamps_the_attempt() {
        let (_metrics, guard) = guard();
        let begin = Instant::now();
        let result: Result<(), _> =
            guard.run(&policy(60, 3), Operation::idempotent("list"), std::future::pending).await;
        assert!(result.is_err());
        assert_eq!(begin.elapsed().as_secs(), 3);
    }
}
