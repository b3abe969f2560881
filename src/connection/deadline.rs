//! The caller's deadline, which every attempt and every wait below it keeps.

use std::future::Future;

use tokio::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Runs `future` for a caller that waits until `deadline`. What the future spawns is not bound.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    let sooner = current().map_or(deadline, |outer| outer.min(deadline));
    DEADLINE.scope(sooner, future).await
}

/// The deadline of whoever waits for the current task, if there is one.
pub(super) fn current() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}
