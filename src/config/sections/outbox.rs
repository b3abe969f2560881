//! The section `[outbox]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::{
    config::{problem::SectionProblems, values::duration},
    model::lanes::Lanes,
};

/// Accepted events, until the broker has them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outbox {
    /// The most events of clients that may wait for the broker, and the most executions that may wait
    /// for the execution service. When either limit is reached, further requests of its kind get 503
    /// with `Retry-After`. Events about executions have a reserve of their own, as large: new
    /// executions get 503 while it is full.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_rows: i64,
    /// The number of lanes into which the outbox is divided: 16, 32, 64, 128 or 256. Each replica
    /// delivers the events of its own lanes, so more replicas than lanes leave some idle. All
    /// replicas on one database use the number of the replica that started last; they change to it
    /// without reordering events. While a replica of an earlier release, which knows only 16,
    /// shares the database, there are 16.
    #[schemars(range(min = 16, max = 256))]
    pub lanes: i32,
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
            lanes: Lanes::SIXTEEN.number(),
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
        if Lanes::new(self.lanes).is_none() {
            problems.add("lanes", "must be 16, 32, 64, 128 or 256");
        }
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
    fn the_number_of_lanes_is_a_power_of_two() {
        for lanes in [16, 32, 64, 128, 256] {
            assert_eq!(problems_of("outbox", &Outbox { lanes, ..Outbox::default() }), [""; 0]);
        }
        for lanes in [17, 48, 255] {
            let told = problems_of("outbox", &Outbox { lanes, ..Outbox::default() });
            assert_eq!(told, ["outbox.lanes: must be 16, 32, 64, 128 or 256"]);
        }
    }

    #[test]
    fn a_lease_outlasts_four_looks() {
        assert_eq!(problems_of("outbox", &Outbox::default()), [""; 0]);
        let hasty = Outbox { poll_interval: Duration::from_secs(3), ..Outbox::default() };
        let told = problems_of("outbox", &hasty);
        assert!(told[0].starts_with("outbox.lease: must be at least four times"), "{told:?}");
    }
}
