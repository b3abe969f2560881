//! The settings that all managed connections share: the same tables, read by the same code.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ConfigSection,
    policies::{CircuitBreaker, Concurrency, Retry, Timeout},
};
use crate::config::{backend::Section, problem::SectionProblems, values::duration};

/// A managed connection: its backend, when it is established, and its policies. The backend's own
/// settings are in the table named after it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connection {
    /// The backend in use.
    pub backend: String,
    /// When the connection is established. `lazy`: on the first request. `background`: at start,
    /// retried until it succeeds, while the service already answers. `wait`: start waits up to
    /// `startup_timeout`, then continues as with `background`. `fail`: start fails if the
    /// connection cannot be established within `startup_timeout`. The database is never lazy.
    pub startup: Startup,
    /// How long start waits for the connection; only with `wait` and `fail`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "100ms", "x-maximum" = "10m"))]
    pub startup_timeout: Duration,
    /// Whether an outage makes this instance unhealthy (and not ready), or only degraded.
    pub required: bool,
    /// Allows a backend that only one process can use, although ENVIRONMENT is production.
    pub allow_embedded_in_production: bool,
    /// Pooled connections.
    pub pool: Pool,
    /// Time limits of calls.
    pub timeout: Timeout,
    /// Retries of failed attempts.
    pub retry: Retry,
    /// Stops calling a backend that fails.
    pub circuit_breaker: CircuitBreaker,
    /// Bounds calls in flight.
    pub concurrency: Concurrency,
    /// The background health check.
    pub probe: Probe,
    /// The backends' own tables, checked, by backend.
    #[serde(skip)]
    pub backends: BTreeMap<String, Section>,
}

/// When a connection is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Startup {
    /// On the first request.
    Lazy,
    /// At start, retried until it succeeds, while the service already answers.
    Background,
    /// Start waits for it up to `startup_timeout`, then continues without it.
    Wait,
    /// Start fails without it.
    Fail,
}

impl Connection {
    // The backend itself is filled in from the descriptors: the configuration knows none by name.
    fn optional() -> Self {
        Self {
            backend: String::new(),
            startup: Startup::Background,
            startup_timeout: Duration::from_secs(30),
            required: false,
            allow_embedded_in_production: false,
            pool: Pool::default(),
            timeout: Timeout::default(),
            retry: Retry::default(),
            circuit_breaker: CircuitBreaker::default(),
            concurrency: Concurrency::default(),
            probe: Probe::default(),
            backends: BTreeMap::new(),
        }
    }

    /// The defaults of the event broker.
    #[must_use]
    pub fn event_broker() -> Self {
        Self::optional()
    }

    /// The defaults of the execution service.
    #[must_use]
    pub fn execution_service() -> Self {
        Self::optional()
    }

    /// The defaults of the database.
    #[must_use]
    pub fn database() -> Self {
        Self { required: true, ..Self::optional() }
    }
}

impl ConfigSection for Connection {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        if problems.path() == "database" && self.startup == Startup::Lazy {
            problems.add(
                "startup",
                "the database is never lazy: use \"background\", \"wait\" or \"fail\"",
            );
        }
        self.pool.validate(problems);
        self.timeout.validate(problems);
        self.retry.validate(self.timeout.total, problems);
        let max_in_flight = self.concurrency.max_in_flight;
        self.circuit_breaker.validate(self.timeout.attempt, max_in_flight, problems);
        if self.probe.timeout > self.probe.interval * 2 {
            problems.add_conflict(
                "probe.timeout",
                &["probe.interval"],
                format!(
                    "may not exceed twice the interval ({:?}), or a slow probe looks like a stalled one",
                    self.probe.interval
                ),
            );
        }
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::event_broker()
    }
}

/// Pooled connections of a backend. The memory broker and the embedded execution service have none.
/// Temporal has one connection, to which `connect_timeout` and `keepalive` apply; Redis pools the
/// connections of blocking reads only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Pool {
    /// The most pooled connections at once. More are rarely faster: begin with twice the database's
    /// cores. Temporal always uses one connection.
    #[schemars(range(min = 1, max = 1000))]
    pub max_size: usize,
    /// How long a call waits for a free pooled connection; counts towards `timeout.attempt`. A call
    /// that gets none in that time is refused as `overloaded`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "5m"))]
    pub acquire_timeout: Duration,
    /// How long opening one pooled connection may take, including TLS and login.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "5m"))]
    pub connect_timeout: Duration,
    /// A pooled connection is replaced at this age, shortened at random by up to a tenth, so that
    /// not all are replaced at once. `0s` disables the limit.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "7d"))]
    pub max_lifetime: Duration,
    /// A pooled connection that is idle for this long is closed. `0s` keeps idle connections open.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "7d"))]
    pub idle_timeout: Duration,
    /// How often an idle pooled connection is checked, so that firewalls keep it open and a lost
    /// connection is found before a call uses it. Must be less than `idle_timeout` and
    /// `max_lifetime`. `0s` disables the checks. For Temporal, the interval between two pings of
    /// its connection, at most 30s. Unused by `SQLite`, which has no network.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "1d"))]
    pub keepalive: Duration,
    /// A call that holds a pooled connection for longer is reported once, in a warning that names
    /// the operation and the request; the wait of a blocking read is not counted. `0s` disables the
    /// warning.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "1d"))]
    pub leak_after: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            max_size: 10,
            acquire_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(3),
            max_lifetime: Duration::from_mins(30),
            idle_timeout: Duration::from_mins(10),
            keepalive: Duration::from_mins(2),
            leak_after: Duration::from_secs(30),
        }
    }
}

impl Pool {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        for (name, limit) in
            [("idle_timeout", self.idle_timeout), ("max_lifetime", self.max_lifetime)]
        {
            if !limit.is_zero() && self.keepalive >= limit {
                problems.add_conflict(
                    "pool.keepalive",
                    &[&format!("pool.{name}")],
                    format!(
                        "would never check a connection before it is closed: it must be less than \
                         pool.{name} ({}); \"0s\" switches the checks off",
                        humantime::format_duration(limit)
                    ),
                );
            }
        }
    }
}

/// The background health check of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Probe {
    /// Time between two probes, varied at random by up to a tenth.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "50ms", "x-maximum" = "10m"))]
    pub interval: Duration,
    /// How long one probe may take; at most twice the interval.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "1m"))]
    pub timeout: Duration,
    /// Failed probes in a row after which the connection is down and its backend is rebuilt.
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_after: u32,
    /// Successful probes in a row after which the connection is up again.
    #[schemars(range(min = 1, max = 100))]
    pub healthy_after: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            unhealthy_after: 3,
            healthy_after: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn the_database_alone_is_never_lazy() {
        for (name, usual) in [
            ("database", Connection::database()),
            ("event_broker", Connection::event_broker()),
            ("execution_service", Connection::execution_service()),
        ] {
            assert_eq!(problems_of(name, &usual), [""; 0]);
            let lazy = Connection { startup: Startup::Lazy, ..usual };
            assert_eq!(problems_of(name, &lazy).len(), usize::from(name == "database"), "{name}");
        }
    }
}
