//! What is accepted and not handed over.

use std::time::Duration;

/// Accepted work that is not handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Those that wait.
    pub rows: i64,
    /// How long the first of them has waited.
    pub oldest: Option<Duration>,
    /// Those that were refused for good.
    pub dead: i64,
}
