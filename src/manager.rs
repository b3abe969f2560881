//! The three managed connections of one running application.

mod reload;

use std::sync::Arc;

pub use self::reload::{ReloadError, Reloaded, Reloader};
use crate::{
    backends::{
        database::{self, Database},
        event_broker::{self, EventBroker},
        execution_service::{self, ExecutionService},
    },
    config::{BackendDescriptor, Config},
    connection::{Checked, ConnectionReport, Force, Managed, Settings, Transition},
    error::{Error, ErrorKind},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

/// Holds the connections, once per running application, so that two applications can run in one
/// test.
#[derive(Clone, Debug)]
pub struct ConnectionManager {
    /// Stores accepted work.
    pub database: Managed<dyn Database>,
    /// Carries events.
    pub event_broker: Managed<dyn EventBroker>,
    /// Runs executions.
    pub execution_service: Managed<dyn ExecutionService>,
}

impl ConnectionManager {
    /// Creates unstarted connections. `instance` identifies this process among the replicas.
    #[must_use]
    pub fn new(instance: &Arc<str>, metrics: &Metrics, tasks: &Tasks) -> Self {
        let database = Managed::new(
            database::registry(),
            Arc::clone(instance),
            metrics.connection(database::FAMILY),
            tasks.clone(),
        );
        let event_broker = Managed::new(
            event_broker::registry(database.client()),
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

    /// Starts to build and watch the connections.
    pub fn start(&self, config: &Config) {
        self.database.start(Settings::from(&config.database));
        self.event_broker.start(Settings::from(&config.event_broker));
        self.execution_service.start(Settings::from(&config.execution_service));
    }

    /// Tries every connection once, all concurrently, and starts none.
    pub async fn check(&self, config: &Config) -> Vec<Checked> {
        // All are configured before the first is tried, because one connection can depend on
        // another.
        self.database.configure(Settings::from(&config.database));
        self.event_broker.configure(Settings::from(&config.event_broker));
        self.execution_service.configure(Settings::from(&config.execution_service));
        let (broker, service, database) = tokio::join!(
            self.event_broker.check(),
            self.execution_service.check(),
            self.database.check()
        );
        vec![broker, service, database]
    }

    /// Waits for the connections that startup requires.
    ///
    /// # Errors
    /// When a connection with `startup = "fail"` cannot be established in time.
    pub async fn started(&self) -> Result<(), Error> {
        self.database.started().await?;
        self.event_broker.started().await?;
        self.execution_service.started().await
    }

    /// Waits until every required connection works; forever once they are closed.
    pub async fn ready(&self) {
        self.database.initialized_if_required().await;
        self.event_broker.initialized_if_required().await;
        self.execution_service.initialized_if_required().await;
    }

    /// Updates the gauges of all connections for a scrape.
    pub fn collect(&self) {
        self.event_broker.collect();
        self.execution_service.collect();
        self.database.collect();
    }

    /// The current report on each connection. Does no I/O.
    #[must_use]
    pub fn reports(&self) -> Vec<ConnectionReport> {
        vec![self.event_broker.report(), self.execution_service.report(), self.database.report()]
    }

    /// The latest changes of state of each connection, oldest first.
    #[must_use]
    pub fn timelines(&self) -> [(&'static str, Vec<Transition>); 3] {
        [
            (event_broker::FAMILY, self.event_broker.timeline()),
            (execution_service::FAMILY, self.execution_service.timeline()),
            (database::FAMILY, self.database.timeline()),
        ]
    }

    /// The number of changes of state of all connections.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.database.changes() + self.event_broker.changes() + self.execution_service.changes()
    }

    /// The current report on one connection and its latest changes of state, oldest first.
    ///
    /// # Errors
    /// When no connection has this name.
    pub fn report(&self, name: &str) -> Result<(ConnectionReport, Vec<Transition>), Error> {
        match name {
            database::FAMILY => Ok((self.database.report(), self.database.timeline())),
            event_broker::FAMILY => Ok((self.event_broker.report(), self.event_broker.timeline())),
            execution_service::FAMILY => {
                Ok((self.execution_service.report(), self.execution_service.timeline()))
            }
            _ => Err(unknown(name)),
        }
    }

    /// Rebuilds one connection while the old backend serves.
    ///
    /// # Errors
    /// When no connection has this name, or when it cannot be rebuilt; the old backend then stays
    /// in use.
    pub async fn reconnect(&self, name: &str) -> Result<(), Error> {
        match name {
            database::FAMILY => self.database.reconnect().await,
            event_broker::FAMILY => self.event_broker.reconnect().await,
            execution_service::FAMILY => self.execution_service.reconnect().await,
            _ => Err(unknown(name)),
        }
    }

    /// Lets an operator force the circuit breaker of one connection, or returns it to automatic
    /// control.
    ///
    /// # Errors
    /// When no connection has this name.
    pub fn force_circuit(&self, name: &str, force: Force) -> Result<(), Error> {
        match name {
            database::FAMILY => self.database.force_circuit(force),
            event_broker::FAMILY => self.event_broker.force_circuit(force),
            execution_service::FAMILY => self.execution_service.force_circuit(force),
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    /// Closes the connections in the reverse order of their dependencies.
    pub async fn close(&self) {
        self.execution_service.close().await;
        self.event_broker.close().await;
        self.database.close().await;
    }
}

fn unknown(name: &str) -> Error {
    let names = [event_broker::FAMILY, execution_service::FAMILY, database::FAMILY].join(", ");
    Error::new(ErrorKind::NotFound, format!("there is no connection {name:?}; there are {names}"))
}
