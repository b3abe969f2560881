//! What a task carries with it through the layers: how long its caller waits, and which guarded
//! call it is in.

use std::{cell::Cell, future::Future};

use tokio::time::Instant;

tokio::task_local! {
    static DEADLINE: Instant;
    static OPERATION: &'static str;
}

thread_local! {
    /// An attempt of a guarded call is being polled.
    static ADVANCING: Cell<bool> = const { Cell::new(false) };
}

/// While it exists, the attempt of this thread advances or, with false, is cut off.
pub(super) struct Advancing(bool);

impl Advancing {
    pub(super) fn set(advancing: bool) -> Self {
        Self(ADVANCING.replace(advancing))
    }
}

impl Drop for Advancing {
    fn drop(&mut self) {
        ADVANCING.set(self.0);
    }
}

/// Whether what is dropped now belongs to an attempt that did not come to its end: its time was up,
/// or its caller went away. Nobody knows what its connection still owes.
#[must_use]
pub fn was_cut_off() -> bool {
    current_operation().is_some() && !ADVANCING.get()
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
