//! The connection as its callers see it, and calls that read like calls.
//!
//! Beside the trait of each family stands its client: a list of the trait's methods, in which each
//! says whether it may be repeated. Every line makes a method of the same name on the [`Client`] of
//! the family, which calls the backend through the guard:
//!
//! ```text
//! database.mark_delivered(owner, lanes, events).await
//! ```

use std::{fmt, future::Future, sync::Arc};

use super::{Backend, Lease, Operation, slot::Slot};
use crate::error::Error;

/// A managed connection as its callers see it: they call the backend, and do not care which one it
/// is, when it was built or that it is replaced meanwhile.
pub struct Client<B: ?Sized + Backend> {
    slot: Arc<Slot<B>>,
    /// True when its calls are parts of an operation that is retried as a whole.
    is_part: bool,
}

impl<B: ?Sized + Backend> Client<B> {
    pub(super) fn new(slot: Arc<Slot<B>>) -> Self {
        Self { slot, is_part: false }
    }

    /// The same connection, for calls that their caller repeats as parts of a whole: the guard
    /// repeats none of them, so that retries do not multiply.
    #[must_use]
    pub fn unretried(&self) -> Self {
        Self { slot: Arc::clone(&self.slot), is_part: true }
    }

    /// Calls the backend through the guard.
    ///
    /// `attempt` may run more than once, if the operation allows it.
    ///
    /// # Errors
    /// The backend's, or the reason why it could not be called.
    ///
    /// # Cancel safety
    /// Dropping the future gives the backend back; whether the call had its effect is unknown.
    pub async fn call<T, F, Fut>(&self, operation: Operation, attempt: F) -> Result<T, Error>
    where
        F: Fn(Lease<B>) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let slot = &self.slot;
        let operation = if self.is_part { operation.as_part() } else { operation };
        let result = slot.guard.run(operation, || slot.attempt(&attempt)).await;
        slot.note(&result);
        result
    }

    /// The backend for a supervised stream (a blocking read, a subscription), which no timeout of
    /// the guard bounds.
    ///
    /// # Errors
    /// When it is not built and cannot be.
    pub async fn lease(&self) -> Result<Lease<B>, Error> {
        self.slot.lease().await
    }

    /// True while probes, or attempts to build it, find the backend down.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.slot.is_out()
    }
}

impl<B: ?Sized + Backend> Clone for Client<B> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot), is_part: self.is_part }
    }
}

impl<B: ?Sized + Backend> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.slot.name).finish()
    }
}

/// Generates the client of a family from the list of its guarded methods.
///
/// - `idempotent`: repeating it after it may have reached the backend changes nothing.
/// - `once`: a repetition could have its effect twice.
/// - `passed_on`: the backend passes it on to somebody else, who is to blame for a late answer.
///
/// Arguments are references or `Copy`, because an attempt may be repeated.
macro_rules! guarded {
    (dyn $family:ident; $($trait:ident {
        $($class:ident $method:ident($($arg:ident: $type:ty),*) -> $answer:ty;)+
    })+) => {
        impl $crate::connection::Family for dyn $family {
            const OPERATIONS: &'static [$crate::connection::Operation] =
                &[$($($crate::connection::Operation::$class(stringify!($method)),)+)+];
        }

        impl $crate::connection::Client<dyn $family> {
            $($(
                #[doc = concat!("[`", stringify!($trait), "::", stringify!($method), "`]")]
                /// through the guard.
                ///
                /// # Errors
                /// The backend's, or the reason why it could not be called.
                pub async fn $method(
                    &self,
                    $($arg: $type),*
                ) -> Result<$answer, $crate::error::Error> {
                    let operation = $crate::connection::Operation::$class(stringify!($method));
                    self.call(operation, |backend| async move {
                        $trait::$method(&**backend, $($arg),*).await
                    })
                    .await
                }
            )+)+
        }
    };
}

pub(crate) use guarded;
