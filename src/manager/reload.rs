//! Reloads the configuration and applies it to all connections or to none.

use std::fmt;

use tokio::sync::Mutex;

use super::ConnectionManager;
use crate::{
    config::{self, BackendDescriptor, Config, ConfigError, Connection, Loaded},
    connection::Settings,
    error::Error,
};

/// Settings of a connection that are read only at startup.
const READ_AT_START: [&str; 3] = ["startup", "startup_timeout", "allow_embedded_in_production"];

/// Settings of a connection that take effect even when its backend must stay.
const LEFT_WHEN_MOVED: [&str; 7] =
    ["pool", "timeout", "retry", "circuit_breaker", "concurrency", "probe", "required"];

/// The result of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that changed and are in effect.
    pub applied: Vec<String>,
    /// Keys that differ from the configuration at startup and wait for a restart.
    pub needs_restart: Vec<String>,
    /// Connections that were rebuilt.
    pub rebuilt: Vec<&'static str>,
}

/// The reason that nothing was changed.
#[derive(Debug)]
pub enum ReloadError {
    /// The configuration has problems.
    Config(ConfigError),
    /// A connection cannot be built with its new settings.
    Connection {
        /// The name of the connection.
        name: &'static str,
        /// Its keys that have new values.
        keys: Vec<String>,
        /// The error of the build.
        error: Error,
    },
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(problems) => problems.fmt(f),
            Self::Connection { name, keys, error } => {
                write!(f, "{name} cannot be made with its new {}: {error}", keys.join(", "))
            }
        }
    }
}

impl std::error::Error for ReloadError {}

/// The configuration at startup and the one in effect.
#[derive(Debug)]
struct Known {
    started: Loaded,
    current: Loaded,
}

/// Reloads the configuration, one reload at a time.
#[derive(Debug)]
pub struct Reloader {
    manager: ConnectionManager,
    known: Mutex<Option<Known>>,
}

impl Reloader {
    /// Knows no configuration yet.
    #[must_use]
    pub fn new(manager: ConnectionManager) -> Self {
        Self { manager, known: Mutex::new(None) }
    }

    /// Stores the configuration with which the program started.
    pub async fn started_with(&self, loaded: Loaded) {
        *self.known.lock().await = Some(Known { started: loaded.clone(), current: loaded });
    }

    /// Reads files and secrets again, with the environment of the start; checks everything; builds
    /// and probes the connections that must be rebuilt; and only then puts all of it in use.
    ///
    /// # Errors
    /// All problems of the configuration, or the first connection that cannot be built. In either
    /// case nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let mut known = self.known.lock().await;
        let Some(known) = known.as_mut() else { return Ok(Reloaded::default()) };
        let mut new = config::reload(&known.started, &self.manager.descriptors())
            .map_err(ReloadError::Config)?;
        let moved = self.moved(&known.started.config, &new.config);
        let mut reloaded = Reloaded {
            applied: known.current.changed_keys(&new),
            needs_restart: known.started.changed_keys(&new),
            rebuilt: Vec::new(),
        };
        reloaded.applied.retain(|key| applies(key, moved));
        reloaded.needs_restart.retain(|key| !applies(key, moved));
        let current = &known.current.config;
        if moved.database {
            keep_backend(&mut new.config.database, &current.database);
        }
        if moved.execution_service {
            keep_backend(&mut new.config.execution_service, &current.execution_service);
        }
        reloaded.rebuilt = self.apply(&new.config, &reloaded.applied).await?;
        known.current = new;
        Ok(reloaded)
    }

    fn moved(&self, old: &Config, new: &Config) -> Moved {
        let services = self.manager.execution_service.descriptors();
        Moved {
            database: moved(&self.manager.database.descriptors(), &old.database, &new.database),
            execution_service: moved(&services, &old.execution_service, &new.execution_service),
        }
    }

    async fn apply(
        &self,
        config: &Config,
        changed: &[String],
    ) -> Result<Vec<&'static str>, ReloadError> {
        let ConnectionManager { database, event_broker, execution_service } = &self.manager;
        let failed = |name: &'static str| {
            let section = format!("{name}.");
            let of_it = changed.iter().filter(move |key| key.starts_with(&section)).cloned();
            move |error| ReloadError::Connection { name, keys: of_it.collect(), error }
        };

        let new_database = database.prepare(Settings::from(&config.database)).await;
        let new_database = new_database.map_err(failed(database.name()))?;
        let new_broker = event_broker.prepare(Settings::from(&config.event_broker)).await;
        let new_broker = match new_broker {
            Ok(prepared) => prepared,
            Err(error) => {
                new_database.discard().await;
                return Err(failed(event_broker.name())(error));
            }
        };
        let new_service = execution_service.prepare(Settings::from(&config.execution_service));
        let new_service = match new_service.await {
            Ok(prepared) => prepared,
            Err(error) => {
                new_broker.discard().await;
                new_database.discard().await;
                return Err(failed(execution_service.name())(error));
            }
        };

        let rebuilt = [
            (database.name(), new_database.rebuilds()),
            (event_broker.name(), new_broker.rebuilds()),
            (execution_service.name(), new_service.rebuilds()),
        ];
        database.commit(new_database);
        event_broker.commit(new_broker);
        execution_service.commit(new_service);
        Ok(rebuilt.into_iter().filter(|(_, anew)| *anew).map(|(name, _)| name).collect())
    }
}

/// The connections that would find other data with their new settings. Accepted work is in the
/// database, and running executions are in the execution service, so the program keeps the ones
/// that it started with.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    database: bool,
    execution_service: bool,
}

fn moved(descriptors: &[BackendDescriptor], old: &Connection, new: &Connection) -> bool {
    let place = |connection: &Connection| {
        let name = &connection.backend;
        let descriptor = descriptors.iter().find(|one| one.name == name)?;
        let section = connection.backends.get(name).cloned().unwrap_or_default();
        descriptor.place_of_data(&section)
    };
    old.backend != new.backend || place(old) != place(new)
}

fn keep_backend(new: &mut Connection, old: &Connection) {
    new.backend.clone_from(&old.backend);
    new.backends.clone_from(&old.backends);
}

/// True when a key takes effect without a restart.
fn applies(key: &str, moved: Moved) -> bool {
    let Some((section, rest)) = key.split_once('.') else { return false };
    let first = rest.split('.').next().unwrap_or_default();
    let moved = match section {
        "database" => moved.database,
        "execution_service" => moved.execution_service,
        "event_broker" => false,
        _ => return false,
    };
    if moved { LEFT_WHEN_MOVED.contains(&first) } else { !READ_AT_START.contains(&first) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_change_and_what_holds_data_stays_where_it_is() {
        let here = Moved::default();
        let moved = Moved { database: true, execution_service: true };
        assert!(applies("event_broker.redis.url", moved));
        assert!(applies("event_broker.backend", moved));
        assert!(applies("database.postgres.password", here));
        assert!(applies("execution_service.temporal.address", here));
        assert!(applies("database.timeout.total", moved));
        assert!(!applies("database.postgres.url", moved));
        assert!(!applies("database.backend", moved));
        assert!(!applies("execution_service.backend", moved));
        assert!(!applies("event_broker.startup", here));
        assert!(!applies("server.port", here));
        assert!(!applies("workflows", here));
        assert!(!applies("ENVIRONMENT", here));
    }
}
