//! `[health]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;

/// `/health`, `/livez`, `/readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// When `/health` includes `connections.details`: `always`, `when_authorized` (scope `read`) or
    /// `never`.
    pub details: Details,
    /// The HTTP status of `/health` by state.
    pub http_status: HealthHttpStatus,
}

impl Default for Health {
    fn default() -> Self {
        Self { details: Details::Always, http_status: HealthHttpStatus::default() }
    }
}

impl ConfigSection for Health {}

/// When the health report includes details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Details {
    /// For everyone.
    Always,
    /// For callers with the scope `read`.
    WhenAuthorized,
    /// For nobody.
    Never,
}

impl Details {
    /// Whether a caller gets the details.
    #[must_use]
    pub fn shown_to(self, may_read: bool) -> bool {
        match self {
            Self::Always => true,
            Self::WhenAuthorized => may_read,
            Self::Never => false,
        }
    }
}

/// The HTTP status of `/health` by state. `unhealthy` is 200 because a manifest that uses `/health`
/// as liveness probe would otherwise restart every replica in a database outage. Set it to 503 if
/// the probes use `/livez` and `/readyz`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct HealthHttpStatus {
    /// All is well.
    #[schemars(range(min = 200, max = 599))]
    pub healthy: u16,
    /// The service works without some of its parts.
    #[schemars(range(min = 200, max = 599))]
    pub degraded: u16,
    /// A required connection is down.
    #[schemars(range(min = 200, max = 599))]
    pub unhealthy: u16,
    /// A required connection has not been tried yet.
    #[schemars(range(min = 200, max = 599))]
    pub starting: u16,
    /// The service is stopping.
    #[schemars(range(min = 200, max = 599))]
    pub draining: u16,
    /// The probes have stopped running: the process hangs.
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
