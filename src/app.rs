//! The composition root: the only file that knows every module. It reads in the order of startup,
//! then in the order of shutdown.

#[cfg(feature = "sqlite")]
mod migration;
#[cfg(feature = "worker")]
mod worker;

use std::{convert::Infallible, sync::Arc};

use tokio::{task::JoinHandle, time::Instant};

use crate::{
    api::{self, BindError, Bound, Draining, State},
    backends::database,
    config::{BackendDescriptor, Config, Loaded},
    connection::Checked,
    lifecycle::{Exit, Lifecycle, ReloadSignal, Running, Signals},
    manager::{ConnectionManager, Reloader},
    model::ids,
    services::{
        accept::Acceptor,
        commits::Sharing,
        dead_letters::DeadLetters,
        events::{Events, relay::Relay, stream::EventStreams},
        executions::{Executions, Parts},
        housekeeping::Housekeeping,
    },
    telemetry::metrics::Metrics,
};

/// The program before its configuration is known.
#[derive(Debug)]
pub struct App {
    instance: Arc<str>,
    metrics: Arc<Metrics>,
    lifecycle: Lifecycle,
    manager: ConnectionManager,
    reloader: Arc<Reloader>,
}

/// Marks a move that failed before it began, because its target is unusable.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the configured database")]
pub struct TargetUnusable;

impl Default for App {
    fn default() -> Self {
        let instance: Arc<str> = ids::new_id().into();
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), env!("BUILD_COMMIT"));
        let lifecycle = Lifecycle::new(&metrics);
        let manager = ConnectionManager::new(&instance, &metrics, &lifecycle.tasks);
        let reloader = Arc::new(Reloader::new(manager.clone()));
        Self { instance, metrics, lifecycle, manager, reloader }
    }
}

impl App {
    /// The backends of this build, as the configuration sees them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BackendDescriptor> {
        self.manager.descriptors()
    }

    /// The handlers' state over connections that are not established yet.
    #[must_use]
    pub fn state(&self, config: Arc<Config>) -> State {
        let relay = Relay::new(
            Arc::clone(&self.instance),
            self.manager.database.client(),
            self.manager.event_broker.client(),
            config.outbox.clone(),
            Arc::clone(&self.metrics),
        );
        let sharing = Sharing {
            linger: config.outbox.linger,
            most: database::commits_at_once(&config.database),
        };
        let acceptor = Acceptor::new(
            self.manager.database.client(),
            self.lifecycle.tasks.clone(),
            sharing,
            config.idempotency.retention,
        );
        let events =
            Events::new(acceptor.clone(), self.manager.event_broker.client(), relay.clone());
        let streams = EventStreams::new(
            self.manager.event_broker.client(),
            config.event_stream.clone(),
            Arc::clone(&self.metrics),
            self.lifecycle.stop_serving.clone(),
        );
        let parts = Parts {
            owner: Arc::clone(&self.instance),
            acceptor,
            database: self.manager.database.client(),
            service: self.manager.execution_service.client(),
            events: events.clone(),
            metrics: Arc::clone(&self.metrics),
            sharing,
            tasks: self.lifecycle.tasks.clone(),
        };
        let executions = Executions::new(parts, &config);
        State {
            instance: Arc::clone(&self.instance),
            config,
            manager: self.manager.clone(),
            reloader: Arc::clone(&self.reloader),
            events,
            dead_letters: DeadLetters::new(
                self.manager.database.client(),
                relay.clone(),
                executions.clone(),
            ),
            relay,
            streams,
            executions,
            metrics: Arc::clone(&self.metrics),
            draining: Draining::default(),
            tasks: self.lifecycle.tasks.clone(),
        }
    }

    /// Tries every connection once and starts nothing.
    pub async fn check(&self, config: &Config) -> Vec<Checked> {
        self.manager.check(config).await
    }

    /// Reports that this build cannot migrate.
    ///
    /// # Errors
    /// Always: this build has no embedded database to read from.
    #[cfg(not(feature = "sqlite"))]
    pub async fn migrate(
        &self,
        _config: &Config,
        _from: &std::path::Path,
        _progress: impl FnMut(usize),
    ) -> anyhow::Result<usize> {
        anyhow::bail!("this build has no embedded database: enable the feature `sqlite`")
    }

    /// Serves the API until the program is asked to stop.
    ///
    /// # Errors
    /// When the port cannot be listened on or signals cannot be received.
    pub async fn serve(self, loaded: Loaded) -> anyhow::Result<Exit> {
        let begin = Instant::now();
        let mut signals = Signals::listen()?;
        let reload_signal = ReloadSignal::listen()?;
        log_choices(&loaded);
        let config = Arc::new(loaded.config.clone());
        self.reloader.started_with(loaded).await;
        let bound = match Bound::new(&config.server) {
            Ok(bound) => bound,
            Err(error) => {
                tracing::error!("{error}");
                return Ok(match error {
                    BindError::TlsFile(_) => Exit::BadConfig,
                    BindError::Address { .. } => Exit::CannotListen,
                });
            }
        };
        let (address, url) = (bound.address, bound.url());
        let state = self.state(Arc::clone(&config));
        let serving = self.lifecycle.tasks.spawn(api::serve(
            bound,
            api::endpoint(&state),
            self.lifecycle.stop_serving.clone(),
            config.server.shutdown_grace,
        ));
        tracing::info!(%address, "listening on {url}, Swagger UI at /docs");
        self.manager.start(&config);
        let mut running = Running {
            draining: state.draining.clone(),
            serving: Some(serving),
            working: self.start_work(&state, reload_signal),
            manager: self.manager.clone(),
        };
        // From here on clients are served, even while connections are being built, so every exit
        // drains.
        let exit = tokio::select! {
            signal = signals.next() => {
                tracing::info!("{signal} received, stopping");
                Exit::Clean
            }
            exit = self.until_refused(&config, begin) => exit,
            () = running.listener_ended() => {
                tracing::error!("the listener has ended, stopping");
                Exit::Failed
            }
        };
        let stopping = self.lifecycle.stop(&mut running, &config.server);
        tokio::select! {
            clean = stopping => Ok(if clean || exit == Exit::Failed { exit } else { Exit::CutOff }),
            signal = signals.again() => {
                tracing::warn!("{signal} received again, ending at once");
                Ok(Exit::Impatient)
            }
        }
    }

    /// Starts the background work. Returns the tasks for which shutdown waits.
    fn start_work(
        &self,
        state: &State,
        reload_signal: ReloadSignal,
    ) -> Vec<(&'static str, JoinHandle<()>)> {
        let Lifecycle { tasks, stop_work, .. } = &self.lifecycle;
        let (owner, database) = (Arc::clone(&self.instance), self.manager.database.client());
        let housekeeping = Arc::new(Housekeeping::new(owner, database, &state.config));
        let reload = Arc::new(Reload {
            signal: tokio::sync::Mutex::new(reload_signal),
            reloader: Arc::clone(&self.reloader),
        });
        state.streams.start(tasks);
        tasks.keep_until("reload", stop_work, &reload, Reload::at_each_signal);
        vec![
            ("the start of executions", state.executions.start_tasks(tasks, stop_work)),
            ("the delivery of events", state.relay.start(tasks, stop_work)),
            (
                "housekeeping",
                tasks.keep("housekeeping", stop_work, &housekeeping, Housekeeping::run),
            ),
        ]
    }

    /// Waits for the connections that startup requires, then for a permanent refusal by the
    /// database, if there ever is one.
    async fn until_refused(&self, config: &Config, begin: Instant) -> Exit {
        let started = tokio::select! {
            started = self.manager.started() => started,
            error = self.manager.database.refused() => Err(error),
        };
        if let Err(error) = started {
            let remedy = error.remedy();
            tracing::error!(%error, remedy, "a connection that start needs cannot be made");
            return Exit::ConnectionUnavailable;
        }
        warn_of_left_behind(config).await;
        // This is not a separate task, because a cancelled startup must never log that it is ready.
        let error = tokio::select! {
            error = self.manager.database.refused() => error,
            never = log_ready(&self.manager, begin) => match never {},
        };
        let remedy = error.remedy();
        tracing::error!(%error, remedy, "the database refuses this program");
        Exit::ConnectionUnavailable
    }
}

/// Reloads the configuration on request.
struct Reload {
    signal: tokio::sync::Mutex<ReloadSignal>,
    reloader: Arc<Reloader>,
}

impl Reload {
    async fn at_each_signal(self: Arc<Self>) {
        let mut signal = self.signal.lock().await;
        loop {
            signal.next().await;
            match self.reloader.reload().await {
                Ok(done) => tracing::info!(
                    applied = ?done.applied,
                    needs_restart = ?done.needs_restart,
                    rebuilt = ?done.rebuilt,
                    "SIGHUP received, the configuration was read again"
                ),
                Err(error) => {
                    tracing::error!(
                        "SIGHUP received, but the configuration stays as it was: {error}"
                    );
                }
            }
        }
    }
}

/// Logs once that every required connection works.
async fn log_ready(manager: &ConnectionManager, begin: Instant) -> Infallible {
    manager.ready().await;
    let start_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(start_ms, "ready");
    std::future::pending().await
}

/// Warns of accepted work in the embedded database, because its move is easily forgotten.
async fn warn_of_left_behind(config: &Config) {
    #[cfg(feature = "sqlite")]
    if config.database.backend != "sqlite"
        && let Some((path, left)) = database::left_behind().await
    {
        let path = path.display();
        tracing::warn!(
            events = left.events,
            executions = left.executions,
            "{path} holds accepted work that is not done; move it: \
             agentarea-api migrate --from sqlite:{path}"
        );
    }
    #[cfg(not(feature = "sqlite"))]
    let _nothing_to_leave = config;
}

/// Logs the selected backends and the source of each selection.
fn log_choices(loaded: &Loaded) {
    let environment = &loaded.config.environment;
    tracing::info!(environment, "agentarea-api {} starts", env!("CARGO_PKG_VERSION"));
    for (name, connection) in loaded.config.connections() {
        let backend = &connection.backend;
        let place = loaded.tree.place(&format!("{name}.backend"));
        let by = place.map_or_else(|| "compiled default".to_owned(), |place| place.to_string());
        tracing::info!(connection = name, backend, "{name} uses {backend}, chosen by {by}");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

#[cfg(test)]
mod tests;
