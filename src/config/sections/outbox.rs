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
    /// Events that may wait for the broker, and executions for the execution service; while there
    /// are as many for one of them, further ones are answered 503 with `Retry-After`.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_rows: i64,
    /// Events handed to the broker at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub batch: i64,
    /// How often events are looked for that another instance accepted, or that are due again.
    /// Those this instance accepts are handed over at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "1m"))]
    pub poll_interval: Duration,
    /// How long a claim on a lane lasts unless it is renewed, which happens three times as often.
    /// After this time other instances hand over what a dead one held.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "10m"))]
    pub lease: Duration,
    /// While requests come side by side, and commits take at least four times as long, a commit
    /// waits for so long that more of them share it.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "100ms"))]
    pub linger: Duration,
    /// An event or execution that its backend itself refused so often is a dead letter. Outages, timeouts and an
    /// open circuit breaker do not count.
    #[schemars(range(min = 1, max = 1000))]
    pub max_refusals: i32,
    /// While the oldest of them has waited for longer, the service is degraded.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "1d"))]
    pub degraded_after: Duration,
    /// How long delivered events stay in the database. As long, an event with the same source and
    /// id is recognised as a repetition.
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
                "must be at least four times poll_interval, or claims end between two looks",
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
