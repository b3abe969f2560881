//! `/health`, `/livez`, `/readyz`, `/metrics`. The handlers do no I/O.

use std::{collections::HashMap, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use poem::{FromRequest, IntoResponse, Request, Response, http::StatusCode, web::Data};
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi, Tags, param::Query, payload::PlainText, types::ToJSON,
};
use tokio::time::Instant;

use super::{
    State,
    connections::{ConnectionState, ConnectionSummary},
    edge::Caller,
    operation::Operation,
    types::{DateTime, Flag, Written},
};
use crate::{
    connection::ConnectionReport,
    health,
    model::{backlog, time},
};

#[derive(Tags)]
pub(super) enum Tag {
    /// Whether the service and its connections work.
    Health,
}

/// The overall status.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum HealthStatus {
    /// All is well.
    Healthy,
    /// It works, with less than all of its parts.
    Degraded,
    /// A required connection was neither made nor refused yet.
    Starting,
    /// A required connection is down.
    Unhealthy,
    /// The service is stopping.
    Draining,
    /// The probes do not run: the process hangs.
    Stalled,
}

impl From<health::Status> for HealthStatus {
    fn from(status: health::Status) -> Self {
        match status {
            health::Status::Healthy => Self::Healthy,
            health::Status::Degraded => Self::Degraded,
            health::Status::Starting => Self::Starting,
            health::Status::Unhealthy => Self::Unhealthy,
            health::Status::Draining => Self::Draining,
            health::Status::Stalled => Self::Stalled,
        }
    }
}

/// The worst state among the connections.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum ConnectionsStatus {
    /// All work.
    Healthy,
    /// One is down that is not required, or its circuit breaker is not closed.
    Degraded,
    /// A required one is down.
    Unhealthy,
}

impl ConnectionsStatus {
    fn of(reports: &[ConnectionReport]) -> Self {
        match health::connections_status(reports) {
            Some(health::Status::Healthy) => Self::Healthy,
            Some(health::Status::Unhealthy) => Self::Unhealthy,
            // While a required connection is undecided, the others decide; the overall status is
            // `starting`.
            _ => Self::Degraded,
        }
    }
}

/// Whether the service and its connections work, measured in the background moments ago.
#[derive(Debug, Object)]
pub(super) struct HealthReport {
    /// The overall status.
    status: HealthStatus,
    /// Always `agentarea-api`.
    service: String,
    /// The version of the program.
    version: String,
    /// Identifies the answering process.
    instance: String,
    /// The connections.
    connections: Connections,
    /// Accepted work that is waiting, for callers who may see details.
    #[oai(skip_serializing_if_is_none)]
    outbox: Option<Outbox>,
    /// The time of this answer.
    timestamp: DateTime,
}

/// The connections.
#[derive(Debug, Object)]
struct Connections {
    /// The value of `ENVIRONMENT`.
    environment: String,
    /// The worst state among the connections.
    status: ConnectionsStatus,
    /// The state of each connection.
    services: Services,
    /// True as long as no backend was built for a single call.
    connection_reuse: bool,
    /// True while each connection has at most one backend, except during a swap.
    singleton_pattern: bool,
    /// A summary of each connection by name, for callers who may see details.
    #[oai(skip_serializing_if_is_none)]
    details: Option<HashMap<String, ConnectionSummary>>,
}

/// Accepted work, by destination.
#[derive(Debug, Object)]
struct Outbox {
    /// Events.
    event_broker: Waiting,
    /// Executions.
    execution_service: Waiting,
}

/// Accepted work that waits for one destination, as recently counted.
#[derive(Debug, Object)]
struct Waiting {
    /// How much was waiting when it was counted, which one replica does for all. Counting stops at
    /// a few times `outbox.max_rows`.
    rows: i64,
    /// How long the oldest has been waiting.
    #[oai(skip_serializing_if_is_none)]
    oldest_seconds: Option<f64>,
    /// The number of dead letters.
    dead_letters: i64,
    /// How long ago all of this was counted.
    #[oai(skip_serializing_if_is_none)]
    counted_seconds_ago: Option<f64>,
    /// What this process accepted, a second, over the last minute, repetitions included.
    accepted_per_second: f64,
    /// What this process delivered or started, a second, over the last minute.
    delivered_per_second: f64,
    /// The time since which some has waited for longer than `outbox.degraded_after`, for which the
    /// status is `degraded`. Absent while none has.
    #[oai(skip_serializing_if_is_none)]
    late_since: Option<DateTime>,
}

impl Waiting {
    fn new(waiting: &backlog::Waiting) -> Self {
        let seconds = |time: Duration| time.as_secs_f64();
        let backlog = &waiting.backlog;
        Self {
            rows: backlog.rows,
            oldest_seconds: backlog.oldest.map(seconds),
            dead_letters: backlog.dead,
            counted_seconds_ago: waiting.counted_ago.map(seconds),
            accepted_per_second: waiting.accepted_per_second,
            delivered_per_second: waiting.delivered_per_second,
            late_since: waiting.late_since.map(DateTime),
        }
    }
}

/// The state of each connection.
#[derive(Debug, Object)]
struct Services {
    /// The event broker, which carries events.
    event_broker: ConnectionState,
    /// The execution service, which runs executions.
    execution_service: ConnectionState,
    /// The database, which keeps accepted work.
    database: ConnectionState,
}

/// The report, under the HTTP status that the configuration gives to its state.
#[derive(ApiResponse)]
pub(super) enum HealthResponse {
    /// The report. By default, the service is healthy, degraded or unhealthy (see `status`).
    #[oai(status = 200)]
    Up(Written<HealthReport>),
    /// The report. By default, the service is starting, draining or stalled.
    #[oai(status = 503)]
    Down(Written<HealthReport>),
    /// The report, with another configured status code.
    Other(StatusCode, Written<HealthReport>),
}

#[derive(ApiResponse)]
pub(super) enum ProbeResponse {
    /// Yes. The body is the overall status, followed by a line for each connection with `verbose`.
    #[oai(status = 200)]
    Yes(
        PlainText<String>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
    ),
    /// No. The body has the same form.
    #[oai(status = 503)]
    No(
        PlainText<String>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(super) enum MetricsResponse {
    /// `OpenMetrics` text.
    #[oai(
        status = 200,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    )]
    Text(PlainText<String>),
}

/// The maximum age of an answer of `/health` while no state changes: much less than that of a
/// probe, so that a crowd of load balancers costs little more than one.
const FRESH: Duration = Duration::from_millis(10);

/// A recent answer of `/health`.
#[derive(Clone)]
struct Answer {
    at: Instant,
    draining: bool,
    changes: u64,
    status: u16,
    body: Bytes,
}

#[derive(Clone)]
pub(super) struct Api {
    state: State,
    /// The last answers, without and with details.
    answers: Arc<[Mutex<Option<Answer>>; 2]>,
}

impl Api {
    pub(super) fn new(state: State) -> Self {
        Self { state, answers: Arc::default() }
    }

    /// Answers `GET /health` like the operation of the specification.
    pub(super) async fn answer_to(&self, request: &Request) -> poem::Result<Response> {
        let caller = Data::from_request_without_body(request).await?;
        Ok(self.health(caller).await.into_response())
    }

    fn answer(&self, details: bool) -> Answer {
        let draining = self.state.draining.is_on();
        let mut last = self.answers[usize::from(details)].lock();
        let changes = self.state.manager.changes();
        let fresh = |answer: &&Answer| {
            answer.at.elapsed() < FRESH && (answer.draining, answer.changes) == (draining, changes)
        };
        if let Some(answer) = last.as_ref().filter(fresh) {
            return answer.clone();
        }
        let reports = self.state.manager.reports();
        let status = self.state.status(&reports);
        let answer = Answer {
            at: Instant::now(),
            draining,
            changes,
            status: status.http_status(&self.state.config.health.http_status),
            body: report(&self.state, &reports, status, details).to_json_string().into(),
        };
        *last = Some(answer.clone());
        answer
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::probe("getHealth"),
    Operation::probe("getLiveness"),
    Operation::probe("getReadiness"),
    Operation::read("getMetrics", &[])
        .with(|features| features.metrics)
        .opened_by(|auth| auth.open_metrics),
];

#[OpenApi(tag = "Tag::Health")]
impl Api {
    /// Report on the service and its connections
    ///
    /// Answered from memory: the probes in the background have measured it. The HTTP status of each
    /// state is configurable in `[health.http_status]`. Details are for those who may see them.
    #[oai(path = "/health", method = "get", operation_id = "getHealth")]
    async fn health(&self, caller: Data<&Caller>) -> HealthResponse {
        let details = self.state.shows_details(&caller);
        let Answer { status, body, .. } = self.answer(details);
        let body = Written(body, PhantomData);
        match status {
            200 => HealthResponse::Up(body),
            503 => HealthResponse::Down(body),
            other => {
                let other = StatusCode::from_u16(other).unwrap_or(StatusCode::OK);
                HealthResponse::Other(other, body)
            }
        }
    }

    /// Check that the process is alive
    ///
    /// For liveness probes: fails only if the process hangs.
    #[oai(path = "/livez", method = "get", operation_id = "getLiveness")]
    async fn livez(
        &self,
        /// List the connections too.
        verbose: Query<Option<Flag>>,
    ) -> ProbeResponse {
        self.probe(verbose.0.is_some_and(|flag| flag.0), health::Status::is_alive)
    }

    /// Check that the service is ready for traffic
    ///
    /// For readiness probes: fails during start and draining, and without a required connection.
    #[oai(path = "/readyz", method = "get", operation_id = "getReadiness")]
    async fn readyz(
        &self,
        /// List the connections too.
        verbose: Query<Option<Flag>>,
    ) -> ProbeResponse {
        self.probe(verbose.0.is_some_and(|flag| flag.0), health::Status::is_ready)
    }

    /// Get the metrics
    ///
    /// For Prometheus. Every series exists from the start.
    #[oai(path = "/metrics", method = "get", operation_id = "getMetrics")]
    async fn metrics(&self) -> MetricsResponse {
        self.state.manager.collect();
        self.state.relay.collect();
        MetricsResponse::Text(PlainText(self.state.metrics.text()))
    }
}

impl Api {
    fn probe(&self, verbose: bool, holds: fn(health::Status) -> bool) -> ProbeResponse {
        let reports = self.state.manager.reports();
        let status = self.state.status(&reports);
        let mut text = status.as_str().to_owned();
        if verbose {
            let parts = reports.iter().map(|report| {
                let mark = if report.down { '-' } else { '+' };
                format!("\n[{mark}] {} {}", report.name, report.service.as_str())
            });
            text.extend(parts);
        }
        text.push('\n');
        let no_store = "no-store".to_owned();
        if holds(status) {
            ProbeResponse::Yes(PlainText(text), no_store)
        } else {
            ProbeResponse::No(PlainText(text), no_store)
        }
    }
}

fn report(
    state: &State,
    reports: &[ConnectionReport],
    status: health::Status,
    details: bool,
) -> HealthReport {
    let service = |name: &str| {
        let report = reports.iter().find(|report| report.name == name);
        report.map_or(ConnectionState::NotInitialized, |report| report.service.into())
    };
    HealthReport {
        status: status.into(),
        service: "agentarea-api".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: state.instance.to_string(),
        connections: Connections {
            environment: state.config.environment.clone(),
            status: ConnectionsStatus::of(reports),
            services: Services {
                event_broker: service("event_broker"),
                execution_service: service("execution_service"),
                database: service("database"),
            },
            connection_reuse: health::connection_reuse(reports),
            singleton_pattern: health::singleton_pattern(reports),
            details: details.then(|| {
                let named = |r: &ConnectionReport| (r.name.to_owned(), ConnectionSummary::new(r));
                reports.iter().map(named).collect()
            }),
        },
        outbox: details.then(|| Outbox {
            event_broker: Waiting::new(&state.relay.waiting()),
            execution_service: Waiting::new(&state.executions.waiting()),
        }),
        timestamp: DateTime(time::now()),
    }
}
