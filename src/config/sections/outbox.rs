//! The section `[outbox]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::{problem::SectionProblems, values::duration};

/// Accepted events, until the broker has them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outbox {
    /// The most events that may wait for the broker, and the most executions that may wait for the
    /// execution service. When either limit is reached, further requests get 503 with
    /// `Retry-After`.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_rows: i64,
    /// The most events in one batch to the broker.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: i64,
    /// How often this instance looks for events that another instance accepted, or whose retry
    /// interval has elapsed. It delivers the events that it accepts itself at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "1m"))]
    pub poll_interval: Duration,
    /// How long a claim on a lane lasts; it is renewed every third of this time. After this time
    /// other instances deliver the events that a dead instance had claimed.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "10m"))]
    pub lease: Duration,
    /// How long a commit waits for concurrent requests to share it. It waits only while requests
    /// arrive concurrently and commits take at least four times as long.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "100ms"))]
    pub linger: Duration,
    /// Refusals by the backend itself after which an event or execution becomes a dead letter.
    /// Outages, timeouts and an open circuit breaker do not count.
    #[schemars(range(min = 1, max = 1000))]
    pub max_refusals: i32,
    /// While the oldest waiting event or execution is older, the service is degraded.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "1d"))]
    pub degraded_after: Duration,
    /// How long delivered events stay in the database. During this time, an event with the same
    /// source and id is recognised as a repetition, and events that the broker loses are delivered
    /// again.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "30d"))]
    pub replay_window: Duration,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            max_rows: 1_000_000,
            batch: 500,
            poll_interval: Duration::from_millis(250),
            lease: Duration::from_secs(10),
            linger: Duration::from_millis(1),
            max_refusals: 5,
            degraded_after: Duration::from_mins(1),
            replay_window: Duration::from_hours(1),
        }
    }
}

impl ConfigSection for Outbox {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        if self.lease < self.poll_interval * 4 {
            problems.add_conflict(
                "lease",
                &["poll_interval"],
                "must be at least four times poll_interval, or claims expire between two polls",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn a_lease_outlasts_four_looks() {
        assert_eq!(problems_of("outbox", &Outbox::default()), [""; 0]);
        let hasty = Outbox { poll_interval: Duration::from_secs(3), ..Outbox::default() };
        let told = problems_of("outbox", &hasty);
        assert!(told[0].starts_with("outbox.lease: must be at least four times"), "{told:?}");
    }
}
