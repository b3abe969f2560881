//! `[executions]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::{
    problem::SectionProblems,
    values::{duration, optional_duration},
};

/// Executions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Executions {
    /// The total time an execution may take, unless its request sets its own. No limit if unset.
    #[serde(with = "optional_duration")]
    #[schemars(
        schema_with = "optional_duration::schema",
        extend("x-minimum" = "100ms", "x-maximum" = "365d")
    )]
    pub default_timeout: Option<Duration>,
    /// How often one of the instances polls the backend for status changes of running executions;
    /// callers that wait for an execution learn of its change at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "50ms", "x-maximum" = "10m"))]
    pub follow_interval: Duration,
    /// The most pages of lists, of up to 1,000 executions each, that the polling instance requests
    /// from the backend in a second. With fewer, many thousand running executions are confirmed
    /// later; a Temporal namespace allows about ten such calls a second.
    #[schemars(range(min = 1, max = 1000))]
    pub lists_per_second: u32,
    /// How often this instance looks for accepted executions that no instance is starting, for
    /// example after a crash. It starts the executions that it accepts itself at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub sweep_interval: Duration,
    /// How long an instance's claim on an execution to start lasts. After this time other instances
    /// start the executions that a dead instance had claimed, and one of them takes over polling
    /// for status changes.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "10m"))]
    pub lease: Duration,
    /// How long ended executions stay in the database with their results.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1m", "x-maximum" = "3650d"))]
    pub retention: Duration,
    /// A status older than this is reported as `stale`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "1d"))]
    pub confirm_within: Duration,
    /// The longest `?wait=` that is honoured.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "10m"))]
    pub max_wait: Duration,
}

impl Default for Executions {
    fn default() -> Self {
        Self {
            default_timeout: None,
            follow_interval: Duration::from_secs(1),
            lists_per_second: 5,
            sweep_interval: Duration::from_secs(2),
            lease: Duration::from_secs(15),
            retention: Duration::from_hours(24 * 30),
            confirm_within: Duration::from_secs(30),
            max_wait: Duration::from_mins(1),
        }
    }
}

impl ConfigSection for Executions {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        if self.confirm_within < self.follow_interval * 2 {
            problems.add_conflict(
                "confirm_within",
                &["follow_interval"],
                "must be at least twice follow_interval, or every running execution appears stale",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn a_running_execution_is_not_stale_between_two_looks() {
        assert_eq!(problems_of("executions", &Executions::default()), [""; 0]);
        let slow = Executions { follow_interval: Duration::from_secs(20), ..Executions::default() };
        let told = problems_of("executions", &slow);
        assert!(told[0].starts_with("executions.confirm_within: must be at least"), "{told:?}");
    }
}
