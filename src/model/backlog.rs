//! Accepted work that has not been delivered or started.

use std::time::Duration;

use super::time::Timestamp;

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

/// What is known of the accepted work for one destination.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// How much waits, as last counted.
    pub backlog: Backlog,
    /// How long ago it was counted; `None` before the first count.
    pub counted_ago: Option<Duration>,
    /// What this process accepted, a second, over the last minute.
    pub accepted_per_second: f64,
    /// What this process delivered or started, a second, over the last minute.
    pub delivered_per_second: f64,
    /// The time since which some has waited for longer than it should.
    pub late_since: Option<Timestamp>,
}
