//! `/v1/connections`.

use poem_openapi::{Enum, Object, OpenApi, Tags, param::Path, payload::Json};

use super::{State, error::ApiError, operation::Operation, types::DateTime};
use crate::connection::{
    self, Circuit, ConnectionReport, PoolStatus, ProbeReport, Service, Transition,
};

#[derive(Tags)]
pub(super) enum Tag {
    /// What is known of the managed connections.
    Connections,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
pub(super) enum ConnectionState {
    /// Nobody needed it yet.
    NotInitialized,
    /// It is being made for the first time.
    Initializing,
    /// It works.
    Initialized,
    /// It does not.
    Unavailable,
    /// It was closed at shutdown.
    Closed,
}

impl From<Service> for ConnectionState {
    fn from(service: Service) -> Self {
        match service {
            Service::NotInitialized => Self::NotInitialized,
            Service::Initializing => Self::Initializing,
            Service::Initialized => Self::Initialized,
            Service::Unavailable => Self::Unavailable,
            Service::Closed => Self::Closed,
        }
    }
}

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum CircuitState {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls try.
    HalfOpen,
    /// An operator has calls refused.
    ForcedOpen,
    /// An operator has calls pass.
    ForcedClosed,
}

impl From<Circuit> for CircuitState {
    fn from(circuit: Circuit) -> Self {
        match circuit {
            Circuit::Closed => Self::Closed,
            Circuit::Open => Self::Open,
            Circuit::HalfOpen => Self::HalfOpen,
            Circuit::ForcedOpen => Self::ForcedOpen,
            Circuit::ForcedClosed => Self::ForcedClosed,
        }
    }
}

/// The subject of a change of state.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum Subject {
    /// The connection, as its probes find it.
    Connection,
    /// Its circuit breaker.
    CircuitBreaker,
}

impl From<connection::Subject> for Subject {
    fn from(subject: connection::Subject) -> Self {
        match subject {
            connection::Subject::Connection => Self::Connection,
            connection::Subject::CircuitBreaker => Self::CircuitBreaker,
        }
    }
}

/// A summary of a connection.
#[derive(Clone, Debug, Object)]
pub(super) struct ConnectionSummary {
    /// Its name: `event_broker`, `execution_service` or `database`.
    name: String,
    /// The backend in use.
    backend: String,
    /// True if an outage makes the instance unhealthy.
    required: bool,
    /// The state of the connection.
    state: ConnectionState,
    /// The state of its circuit breaker.
    circuit: CircuitState,
    /// The fill level of the retry budget, 0 to 1.
    retry_budget: f64,
    /// Its pool, if it has one.
    #[oai(skip_serializing_if_is_none)]
    pool: Option<Pool>,
    /// How often the backend is reused.
    reuse: Reuse,
    /// The last probe.
    #[oai(skip_serializing_if_is_none)]
    probe: Option<Probe>,
    /// The class of the last error.
    #[oai(skip_serializing_if_is_none)]
    last_error: Option<LastError>,
    /// How often it recovered from an outage.
    recoveries: u64,
}

/// A pool.
#[derive(Clone, Debug, Object)]
struct Pool {
    /// The maximum number of connections.
    max: u64,
    /// Connections in use.
    in_use: u64,
    /// Idle connections.
    idle: u64,
    /// Calls waiting for a connection.
    waiting: u64,
}

/// How often the backend is reused.
#[derive(Clone, Debug, Object)]
struct Reuse {
    /// Successful builds.
    builds: u64,
    /// Builds that replaced another backend.
    rebuilds: u64,
    /// Failed builds.
    build_failures: u64,
    /// Calls served.
    uses: u64,
    /// Calls in progress.
    in_use: u64,
    /// Mean time until a call had the backend, and a connection of its pool, in milliseconds.
    acquire_mean_ms: f64,
    /// The maximum, in milliseconds.
    acquire_max_ms: f64,
}

/// The last probe.
#[derive(Clone, Debug, Object)]
struct Probe {
    /// True if it succeeded.
    ok: bool,
    /// Seconds since it ended.
    age_seconds: f64,
    /// Its duration in milliseconds.
    latency_ms: f64,
    /// Failed probes in a row.
    failures_in_row: u32,
}

/// The last error.
#[derive(Clone, Debug, Object)]
struct LastError {
    /// Its class, such as `refused` or `timeout`.
    class: String,
    /// When it happened.
    at: DateTime,
}

/// A change of a connection's state.
#[derive(Clone, Debug, Object)]
struct StateChange {
    /// The time of the change.
    at: DateTime,
    /// The subject of the change.
    subject: Subject,
    /// The previous state of the connection or of its circuit breaker.
    from: String,
    /// The new state.
    to: String,
    /// The cause of the change.
    cause: String,
    /// The class of the error that caused it.
    #[oai(skip_serializing_if_is_none)]
    error_class: Option<String>,
    /// How long the previous state lasted, in milliseconds.
    duration_ms: u64,
}

/// All details of a connection.
#[derive(Debug, Object)]
struct Connection {
    #[oai(flatten)]
    summary: ConnectionSummary,
    /// The last hundred changes of state, oldest first.
    timeline: Vec<StateChange>,
}

/// All connections.
#[derive(Debug, Object)]
struct ConnectionList {
    /// One entry for each connection.
    items: Vec<ConnectionSummary>,
}

impl ConnectionSummary {
    pub(super) fn new(report: &ConnectionReport) -> Self {
        Self {
            name: report.name.to_owned(),
            backend: report.backend.clone(),
            required: report.required,
            state: report.service.into(),
            circuit: report.circuit.into(),
            retry_budget: report.retry_budget,
            pool: report.pool.map(Pool::from),
            reuse: Reuse {
                builds: report.builds,
                rebuilds: report.rebuilds,
                build_failures: report.build_failures,
                uses: report.uses,
                in_use: report.in_use as u64,
                acquire_mean_ms: report.acquire_mean.as_secs_f64() * 1e3,
                acquire_max_ms: report.acquire_max.as_secs_f64() * 1e3,
            },
            probe: report.probe.map(Probe::from),
            last_error: report
                .last_error
                .map(|(kind, at)| LastError { class: kind.as_str().to_owned(), at: DateTime(at) }),
            recoveries: report.recoveries,
        }
    }
}

impl From<PoolStatus> for Pool {
    fn from(pool: PoolStatus) -> Self {
        Self {
            max: pool.max as u64,
            in_use: pool.in_use as u64,
            idle: pool.idle as u64,
            waiting: pool.waiting as u64,
        }
    }
}

impl From<ProbeReport> for Probe {
    fn from(probe: ProbeReport) -> Self {
        Self {
            ok: probe.ok,
            age_seconds: probe.age.as_secs_f64(),
            latency_ms: probe.latency.as_secs_f64() * 1e3,
            failures_in_row: probe.failures_in_row,
        }
    }
}

impl From<&Transition> for StateChange {
    fn from(transition: &Transition) -> Self {
        Self {
            at: DateTime(transition.at),
            subject: transition.subject.into(),
            from: transition.from.to_owned(),
            to: transition.to.to_owned(),
            cause: transition.cause.to_string(),
            error_class: transition.error.map(|kind| kind.as_str().to_owned()),
            duration_ms: u64::try_from(transition.lasted.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

pub(super) struct Api(pub(super) State);

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::read("listConnections", &[]).with(|features| features.operator_api),
    Operation::read("getConnection", &[404]).with(|features| features.operator_api),
];

#[OpenApi(tag = "Tag::Connections")]
impl Api {
    /// List the connections
    ///
    /// As the answering instance sees them, from the last probe. No backend is called.
    #[oai(path = "/v1/connections", method = "get", operation_id = "listConnections")]
    async fn list(&self) -> Json<ConnectionList> {
        let items = self.0.manager.reports().iter().map(ConnectionSummary::new).collect();
        Json(ConnectionList { items })
    }

    /// Get a connection
    ///
    /// With its timeline: each change, its time and its cause.
    #[oai(path = "/v1/connections/:name", method = "get", operation_id = "getConnection")]
    async fn get(
        &self,
        /// `event_broker`, `execution_service` or `database`.
        name: Path<String>,
    ) -> Result<Json<Connection>, ApiError> {
        let (report, timeline) = self.0.manager.report(&name.0)?;
        Ok(Json(Connection {
            summary: ConnectionSummary::new(&report),
            timeline: timeline.iter().map(StateChange::from).collect(),
        }))
    }
}
