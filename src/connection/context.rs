//! What a task carries with it through the layers: how long its caller waits, and which guarded
//! call it is in.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tracing::Span;

tokio::task_local! {
    static DEADLINE: Instant;
}

/// Runs `future` for a caller that waits until `deadline`. What the future spawns is not bound.
pub async fn within<F: Future>(deadline: Instant, future: F) -> F::Output {
    let sooner = self::deadline().map_or(deadline, |outer| outer.min(deadline));
    DEADLINE.scope(sooner, future).await
}

/// The deadline of the current task's caller, if there is one.
#[must_use]
pub fn deadline() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok()
}

thread_local! {
    /// The attempt of a guarded call that this thread polls, or drops.
    static CURRENT: Cell<Option<Current>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Current {
    operation: &'static str,
    cut_off: bool,
}

/// While it exists, the attempt is the thread's current one.
struct Entered {
    before: Option<Current>,
}

impl Entered {
    fn new(operation: &'static str, cut_off: bool) -> Self {
        Self { before: CURRENT.replace(Some(Current { operation, cut_off })) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

pin_project! {
    /// An attempt of a guarded call, available to all code that it calls or drops.
    pub(super) struct Attempt<F> {
        operation: &'static str,
        span: Span,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Attempt<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                let _in_span = this.span.enter();
                let _entered = Entered::new(this.operation, true);
                this.future.set(None);
            }
        }
    }
}

impl<F> Attempt<F> {
    pub(super) fn new(operation: &'static str, span: Span, future: F) -> Self {
        Self { operation, span, future: Some(future) }
    }
}

impl<F: Future> Future for Attempt<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _in_span = this.span.enter();
        let _entered = Entered::new(this.operation, false);
        // A finished future is not polled again.
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let result = ready!(future.poll(context));
        this.future.set(None);
        Poll::Ready(result)
    }
}

/// The name of the operation that called the backend; none outside of a guarded call.
#[must_use]
pub fn current_operation() -> Option<&'static str> {
    CURRENT.get().map(|current| current.operation)
}

/// Whether what is dropped now belongs to an attempt that did not come to its end: its time was up,
/// or its caller went away. Nobody knows what its connection still owes.
#[must_use]
pub fn was_cut_off() -> bool {
    CURRENT.get().is_some_and(|current| current.cut_off)
}
