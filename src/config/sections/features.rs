//! `[features]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;

/// Run-time feature flags. A disabled route answers 404 and is left out of the specification.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Features {
    /// Swagger UI at `/docs` and the specification at `/openapi.json` and `/openapi.yaml`.
    pub docs: bool,
    /// The status page at `/`.
    pub status_page: bool,
    /// `GET /v1/events/stream`.
    pub event_stream: bool,
    /// `POST /v1/events?delivery=direct`.
    pub direct_delivery: bool,
    /// The operator's routes under `/v1/connections` and `/v1/config`.
    pub operator_api: bool,
    /// `GET /metrics`.
    pub metrics: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            docs: true,
            status_page: true,
            event_stream: true,
            direct_delivery: true,
            operator_api: true,
            metrics: true,
        }
    }
}

impl ConfigSection for Features {}
