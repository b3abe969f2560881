//! The states of a circuit breaker.

use strum::{IntoStaticStr, VariantArray};

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Circuit {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few trial calls pass.
    HalfOpen,
    /// An operator makes it refuse calls.
    ForcedOpen,
    /// An operator makes it admit calls.
    ForcedClosed,
}

impl Circuit {
    /// Stable name, as it appears in reports and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// True when an operator controls it.
    #[must_use]
    pub const fn is_forced(self) -> bool {
        matches!(self, Self::ForcedOpen | Self::ForcedClosed)
    }
}
