//! Every metric, declared once.
//!
//! Labels come from closed sets, and the series of connections exist from the start, so that
//! `rate()` sees their first increase.

mod acquisition;
mod connections;
mod labels;
mod outbox;
mod tasks;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

pub use self::{
    acquisition::Acquisition,
    connections::ConnectionMetrics,
    labels::{Outcome, PerLabel, Phase, Rejection},
    outbox::Destination,
    tasks::TaskMetrics,
};
use self::{connections::ConnectionFamilies, outbox::OutboxMetrics};
use crate::model::backlog::Backlog;
pub use prometheus_client::metrics::counter::Counter;

/// Upper bounds in seconds: half a millisecond to ten seconds.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByExecution {
    workflow: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRequest {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    method: &'static str,
    route: &'static str,
}

/// A gauge of fractional seconds.
type Seconds = Gauge<f64, AtomicU64>;
type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of one application.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: ConnectionFamilies,
    executions: Family<ByExecution, Counter>,
    http_requests: Family<ByRequest, Counter>,
    http_request_seconds: HistogramFamily<ByRoute>,
    outbox: OutboxMetrics,
    tasks: TaskMetrics,
    /// Clients of the event stream.
    pub event_stream_clients: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Declares all metrics. `version` and `commit` appear as `build_info`.
    #[must_use]
    pub fn new(version: &str, commit: &str) -> Arc<Self> {
        let mut registry = Registry::with_prefix("agentarea");
        let connections = ConnectionFamilies::register(&mut registry);
        let executions = Family::default();
        registry.register("executions", "Executions that reached a status", executions.clone());
        let http_requests = Family::default();
        registry.register("http_requests", "Answered HTTP requests", http_requests.clone());
        let http_request_seconds = HistogramFamily::new_with_constructor(seconds as fn() -> _);
        registry.register_with_unit(
            "http_request",
            "Time until the response begins",
            Unit::Seconds,
            http_request_seconds.clone(),
        );
        let outbox = OutboxMetrics::register(&mut registry);
        let tasks = TaskMetrics::default();
        registry.register("tasks_restarted", "Restarts of background tasks", tasks.family());
        let event_stream_clients = Gauge::default();
        registry.register(
            "event_stream_clients",
            "Clients of the event stream",
            event_stream_clients.clone(),
        );
        let build = Info::new([("version", version.to_owned()), ("commit", commit.to_owned())]);
        registry.register("build", "Version of this program", build);
        Arc::new(Self {
            registry,
            connections,
            executions,
            http_requests,
            http_request_seconds,
            outbox,
            tasks,
            event_stream_clients,
        })
    }

    /// The handles of one connection, with all of their series.
    #[must_use]
    pub fn connection(&self, name: &'static str) -> ConnectionMetrics {
        self.connections.handles(name)
    }

    /// The metrics of the supervised tasks.
    #[must_use]
    pub fn tasks(&self) -> TaskMetrics {
        self.tasks.clone()
    }

    /// Sets how much accepted work waits for `destination`, since when, and how much of it was
    /// refused for good, and for how long some of it has been late.
    pub fn show_outbox(&self, destination: Destination, backlog: &Backlog, late_for: Duration) {
        self.outbox.show(destination, backlog, late_for);
    }

    /// Sets how long ago the waiting work was counted.
    pub fn show_outbox_count_age(&self, age: Duration) {
        self.outbox.show_count_age(age);
    }

    /// Counts work that was accepted for `destination`.
    pub fn outbox_accepted(&self, destination: Destination, rows: usize) {
        self.outbox.accepted(destination, rows);
    }

    /// Counts accepted work that `destination` has acknowledged.
    pub fn outbox_delivered(&self, destination: Destination, rows: usize) {
        self.outbox.delivered(destination, rows);
    }

    /// Creates the series of a workflow's executions that reach `status`.
    pub fn declare_execution(&self, workflow: &str, status: &'static str) {
        let labels = ByExecution { workflow: workflow.to_owned(), status };
        drop(self.executions.get_or_create(&labels));
    }

    /// Counts an execution that reached `status`.
    pub fn execution(&self, workflow: &str, status: &'static str) {
        let labels = ByExecution { workflow: workflow.to_owned(), status };
        self.executions.get_or_create(&labels).inc();
    }

    /// Counts an answered request.
    pub fn request(&self, method: &'static str, route: &'static str, status: u16, took: Duration) {
        self.http_requests.get_or_create(&ByRequest { method, route, status }).inc();
        let labels = ByRoute { method, route };
        self.http_request_seconds.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The `OpenMetrics` text.
    ///
    /// # Panics
    /// Never: writing to a string cannot fail.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_of_a_connection_exist_from_the_start() {
        let metrics = Metrics::new("1.2.3", "abc");
        let _handles = metrics.connection("database");
        let text = metrics.text();
        for line in [
            r#"agentarea_connection_up{connection="database"} 0"#,
            r#"agentarea_connection_builds_total{connection="database",outcome="failure"} 0"#,
            r#"agentarea_connection_acquire_seconds_count{connection="database",phase="wait"} 0"#,
            r#"agentarea_call_errors_total{connection="database",class="refused"} 0"#,
            r#"agentarea_probe_age_seconds{connection="database"} 0"#,
            r#"agentarea_build_info{version="1.2.3",commit="abc"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
