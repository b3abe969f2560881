//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine; only failures wait for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Retries `attempt` until it returns a value.
///
/// # Panics
/// When it has returned nothing within [`DEADLINE`].
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    loop {
        pace.tick().await;
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
    }
}
