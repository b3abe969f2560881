//! Accepted work that has not been delivered or started.

use std::time::Duration;

/// The backlog of accepted work that has not been delivered or started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// The number of waiting rows.
    pub rows: i64,
    /// The time for which the oldest of them has waited.
    pub oldest: Option<Duration>,
    /// The number of rows that were refused for good.
    pub dead: i64,
}

/// All accepted work that waited at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Events, including those about executions.
    pub events: Backlog,
    /// The number of waiting events about executions.
    pub lifecycle_events: i64,
    /// Executions.
    pub executions: Backlog,
    /// How long ago the count began.
    pub begun_ago: Duration,
    /// How long ago it ended.
    pub ended_ago: Duration,
}
