//! What a task carries with it through the layers: how long its caller waits, and which guarded
//! call it is in.

use std::future::Future;

use tokio::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
    static OPERATION: &'static str;
}

/// Runs `future` for a caller that waits until `deadline`. What the future spawns is not bound.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    let sooner = self::deadline().map_or(deadline, |outer| outer.min(deadline));
    DEADLINE.scope(sooner, future).await
}

/// The deadline of whoever waits for the current task, if there is one.
#[must_use]
pub fn deadline() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}

/// Runs `attempt` as a part of `operation`.
pub(super) async fn during<T>(operation: &'static str, attempt: impl Future<Output = T>) -> T {
    OPERATION.scope(operation, attempt).await
}

/// The name of the operation that called the backend; none outside of a guarded call.
#[must_use]
pub fn current_operation() -> Option<&'static str> {
    OPERATION.try_with(|operation| *operation).ok()
}
