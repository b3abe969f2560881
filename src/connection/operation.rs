//! A call as the guard knows it: its name, and what its failures mean.

use crate::error::{Error, ErrorKind, RetryClass};

/// The called operation, for policies, metrics and error texts.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its name, such as `publish`.
    pub name: &'static str,
    /// Whether repeating it after it may have reached the backend changes nothing.
    pub idempotent: bool,
    /// Whether the answer comes from the backend itself. A worker that does not answer a query in
    /// time says nothing of the service in between.
    answered_by_backend: bool,
    /// Whether it is a part of another guarded call.
    is_part: bool,
}

impl Operation {
    /// An idempotent operation.
    #[must_use]
    pub const fn idempotent(name: &'static str) -> Self {
        Self { name, idempotent: true, answered_by_backend: true, is_part: false }
    }

    /// An operation whose repetition could have its effect twice.
    #[must_use]
    pub const fn once(name: &'static str) -> Self {
        Self { name, idempotent: false, answered_by_backend: true, is_part: false }
    }

    /// An operation that the backend passes on to somebody else, whose delay is not its fault and
    /// is not shortened by asking again.
    #[must_use]
    pub const fn passed_on(name: &'static str) -> Self {
        Self { name, idempotent: false, answered_by_backend: false, is_part: false }
    }

    /// The same operation as a part of another guarded call, which is repeated as a whole.
    pub(super) const fn as_part(self) -> Self {
        Self { is_part: true, ..self }
    }

    pub(super) fn may_be_repeated_after(self, error: &Error) -> bool {
        match error.retry() {
            _ if self.is_part => false,
            RetryClass::NotSent => true,
            RetryClass::MaybeSent => self.idempotent,
            RetryClass::Never => false,
        }
    }

    pub(super) fn blames_backend(self, error: &Error) -> bool {
        error.kind().blames_backend()
            && (self.answered_by_backend || error.kind() != ErrorKind::Timeout)
    }
}
