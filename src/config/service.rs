//! The sections of the services: `[event_stream]`, `[idempotency]`, `[executions]`, `[health]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    problem::Problems,
    values::{Size, duration, optional_duration},
};

/// Server-sent events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventStream {
    /// The most clients of one instance; further ones are answered 503.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_clients: usize,
    /// Events that one instance keeps for its clients. A client that falls further behind is told
    /// so by a `gap` and disconnected; it comes back with `Last-Event-ID`.
    #[schemars(range(min = 16, max = 1_000_000))]
    pub buffer_events: usize,
    /// The same bound in bytes; whichever is reached first counts.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "1GiB"))]
    pub buffer_bytes: Size,
    /// Silence after which a comment is sent, so that proxies keep the connection open.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1s", "x-maximum" = "5m"))]
    pub keep_alive: Duration,
}

impl Default for EventStream {
    fn default() -> Self {
        Self {
            max_clients: 10_000,
            buffer_events: 10_000,
            buffer_bytes: Size(16 << 20),
            keep_alive: Duration::from_secs(15),
        }
    }
}

/// `Idempotency-Key`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Idempotency {
    /// How long the first answer to a key is kept and repeated.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "24h", "x-maximum" = "365d"))]
    pub retention: Duration,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { retention: Duration::from_hours(24) }
    }
}

/// Executions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Executions {
    /// Time an execution may take in all, unless its request says otherwise. No bound if unset.
    #[serde(with = "optional_duration")]
    #[schemars(
        schema_with = "optional_duration::schema",
        extend("x-minimum" = "100ms", "x-maximum" = "365d")
    )]
    pub default_timeout: Option<Duration>,
    /// How often one of the instances asks the backend for changes of running executions; callers
    /// that wait for one hear of it at once. A Temporal namespace answers about ten such questions a
    /// second.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "50ms", "x-maximum" = "10m"))]
    pub follow_interval: Duration,
    /// How often accepted executions are looked for that nobody hands over, as when an instance
    /// died. Those this instance accepts are handed over at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "100ms", "x-maximum" = "1h"))]
    pub sweep_interval: Duration,
    /// How long a claim on an execution's hand-over lasts. After this time other instances hand
    /// over what a dead one held, and one of them takes its place in following executions.
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
    /// The longest `?wait=` that is granted.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "10m"))]
    pub max_wait: Duration,
}

impl Default for Executions {
    fn default() -> Self {
        Self {
            default_timeout: None,
            follow_interval: Duration::from_secs(1),
            sweep_interval: Duration::from_secs(2),
            lease: Duration::from_secs(15),
            retention: Duration::from_hours(24 * 30),
            confirm_within: Duration::from_secs(30),
            max_wait: Duration::from_mins(1),
        }
    }
}

/// Who sees the details of the health report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Details {
    /// Everyone.
    Always,
    /// Callers with the scope `read`.
    WhenAuthorized,
    /// Nobody.
    Never,
}

impl Details {
    /// Whether a caller sees them.
    #[must_use]
    pub fn shown_to(self, may_read: bool) -> bool {
        match self {
            Self::Always => true,
            Self::WhenAuthorized => may_read,
            Self::Never => false,
        }
    }
}

/// `/health`, `/livez`, `/readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Who sees `connections.details`: `always`, `when_authorized` (scope `read`) or `never`.
    pub details: Details,
    /// The HTTP status of `/health` by state.
    pub http_status: HealthHttpStatus,
}

impl Default for Health {
    fn default() -> Self {
        Self { details: Details::Always, http_status: HealthHttpStatus::default() }
    }
}

/// The HTTP status of `/health` by state. `unhealthy` is 200 because a manifest that uses
/// `/health` as liveness probe would otherwise restart every replica in a database outage. Whoever
/// probes `/livez` and `/readyz` can set it to 503.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct HealthHttpStatus {
    /// All is well.
    #[schemars(range(min = 200, max = 599))]
    pub healthy: u16,
    /// It works, with less than all of its parts.
    #[schemars(range(min = 200, max = 599))]
    pub degraded: u16,
    /// A required connection is down.
    #[schemars(range(min = 200, max = 599))]
    pub unhealthy: u16,
    /// A required connection was not tried yet.
    #[schemars(range(min = 200, max = 599))]
    pub starting: u16,
    /// The service is stopping.
    #[schemars(range(min = 200, max = 599))]
    pub draining: u16,
    /// The probes do not run: the process hangs.
    #[schemars(range(min = 200, max = 599))]
    pub stalled: u16,
}

impl Default for HealthHttpStatus {
    fn default() -> Self {
        Self {
            healthy: 200,
            degraded: 200,
            unhealthy: 200,
            starting: 503,
            draining: 503,
            stalled: 503,
        }
    }
}

impl Executions {
    pub(super) fn check(&self, problems: &mut Problems<'_>) {
        if self.confirm_within < self.follow_interval * 2 {
            problems.add(
                "executions.confirm_within",
                "must be at least twice follow_interval, or every running execution looks stale",
            );
        }
    }
}
