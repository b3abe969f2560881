//! The three managed connections of one running application.

use std::sync::Arc;

use tokio_util::task::TaskTracker;

use crate::{
    backends::{
        database::{self, Database},
        event_broker::{self, EventBroker},
        execution_service::{self, ExecutionService},
    },
    config::{BackendDescriptor, Config},
    connection::{ConnectionReport, Managed, Settings, Transition},
    error::Error,
    telemetry::metrics::Metrics,
};

/// Holds the connections; one for each running application, so that two can live in one test.
#[derive(Clone, Debug)]
pub struct ConnectionManager {
    /// Keeps what was accepted.
    pub database: Managed<dyn Database>,
    /// Carries events.
    pub event_broker: Managed<dyn EventBroker>,
    /// Runs executions.
    pub execution_service: Managed<dyn ExecutionService>,
}

impl ConnectionManager {
    /// Empty slots. `instance` identifies this process among the replicas.
    #[must_use]
    pub fn new(instance: &Arc<str>, metrics: &Metrics, tasks: &TaskTracker) -> Self {
        let database = Managed::new(
            database::registry(),
            Arc::clone(instance),
            metrics.connection(database::FAMILY),
            tasks.clone(),
        );
        let event_broker = Managed::new(
            event_broker::registry(),
            Arc::clone(instance),
            metrics.connection(event_broker::FAMILY),
            tasks.clone(),
        );
        let execution_service = Managed::new(
            execution_service::registry(database.clone()),
            Arc::clone(instance),
            metrics.connection(execution_service::FAMILY),
            tasks.clone(),
        );
        Self { database, event_broker, execution_service }
    }

    /// The backends of this build, as the configuration sees them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BackendDescriptor> {
        let mut descriptors = self.event_broker.descriptors();
        descriptors.extend(self.execution_service.descriptors());
        descriptors.extend(self.database.descriptors());
        descriptors
    }

    /// Begins to make and watch the connections.
    pub fn start(&self, config: &Config) {
        self.database.start(Settings::from(&config.database));
        self.event_broker.start(Settings::from(&config.event_broker));
        self.execution_service.start(Settings::from(&config.execution_service));
    }

    /// Waits for the connections that start is to wait for.
    ///
    /// # Errors
    /// When one with `startup = "fail"` cannot be made in time.
    pub async fn started(&self) -> Result<(), Error> {
        self.database.started().await?;
        self.event_broker.started().await?;
        self.execution_service.started().await
    }

    /// Waits until every required connection works; for ever once they are closed.
    pub async fn ready(&self) {
        self.database.initialized_if_required().await;
        self.event_broker.initialized_if_required().await;
        self.execution_service.initialized_if_required().await;
    }

    /// What is known of each connection now. Does no I/O.
    #[must_use]
    pub fn reports(&self) -> Vec<ConnectionReport> {
        vec![self.event_broker.report(), self.execution_service.report(), self.database.report()]
    }

    /// How often the state of any connection has changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.database.changes() + self.event_broker.changes() + self.execution_service.changes()
    }

    /// The last changes of the state of one connection, oldest first.
    #[must_use]
    pub fn timeline(&self, connection: &str) -> Vec<Transition> {
        if connection == self.database.name() {
            self.database.timeline()
        } else if connection == self.event_broker.name() {
            self.event_broker.timeline()
        } else {
            self.execution_service.timeline()
        }
    }

    /// Closes the connections, in the reverse of the order in which they build on each other.
    pub async fn close(&self) {
        self.execution_service.close().await;
        self.event_broker.close().await;
        self.database.close().await;
    }
}
