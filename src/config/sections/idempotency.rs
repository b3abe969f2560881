//! `[idempotency]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::values::duration;

/// `Idempotency-Key`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Idempotency {
    /// How long the first answer to a key is kept and returned to repeated requests.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "24h", "x-maximum" = "365d"))]
    pub retention: Duration,
}

impl Default for Idempotency {
    fn default() -> Self {
        Self { retention: Duration::from_hours(24) }
    }
}

impl ConfigSection for Idempotency {}
