//! `[event_stream]`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::values::{Size, duration};

/// Server-sent events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventStream {
    /// The most clients of one instance; further clients get 503.
    #[schemars(range(min = 1, max = 100_000))]
    pub max_clients: usize,
    /// Events that one instance keeps for its clients. A client that falls further behind gets a
    /// `gap` and is disconnected; it reconnects with `Last-Event-ID`.
    #[schemars(range(min = 16, max = 1_000_000))]
    pub buffer_events: usize,
    /// The same bound in bytes; whichever is reached first counts.
    #[schemars(extend("x-minimum" = "64KiB", "x-maximum" = "1GiB"))]
    pub buffer_bytes: Size,
    /// Idle time after which a comment is sent, so that proxies keep the connection open.
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

impl ConfigSection for EventStream {}
