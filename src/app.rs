//! The composition root: the only file that sees everything. It reads in the order of start, then
//! in the order of stopping.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    api::{self, BindError, Bound, Draining, State},
    config::{BackendDescriptor, Config, Loaded},
    connection::Checked,
    lifecycle::{Exit, Lifecycle, ReloadSignal, Signals, stopped_in_time},
    manager::{ConnectionManager, Reloader},
    model::ids,
    services::{
        acceptor::Acceptor,
        dead_letters::DeadLetters,
        event_stream::EventStreams,
        events::Events,
        executions::{Executions, Parts},
        relay::Relay,
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

/// Why a move fails that has not begun.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the configured database")]
pub struct TargetUnusable;

impl Default for App {
    fn default() -> Self {
        let instance: Arc<str> = ids::new_id().into();
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), env!("BUILD_COMMIT"));
        let lifecycle = Lifecycle::default();
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

    /// The handlers' state over connections that are not made yet.
    #[must_use]
    pub fn state(&self, config: Arc<Config>) -> State {
        let relay = Relay::new(
            Arc::clone(&self.instance),
            self.manager.database.client(),
            self.manager.event_broker.client(),
            config.outbox.clone(),
            Arc::clone(&self.metrics),
        );
        let acceptor = Acceptor::new(
            self.manager.database.client(),
            self.lifecycle.tasks.clone(),
            config.outbox.linger,
            config.idempotency.retention,
        );
        let events =
            Events::new(acceptor.clone(), self.manager.event_broker.client(), relay.clone());
        let streams = EventStreams::new(
            self.manager.event_broker.client(),
            config.event_stream.clone(),
            Arc::clone(&self.metrics),
            self.lifecycle.tasks.clone(),
            self.lifecycle.stop_serving.clone(),
        );
        let parts = Parts {
            owner: Arc::clone(&self.instance),
            acceptor,
            database: self.manager.database.client(),
            service: self.manager.execution_service.client(),
            events: events.clone(),
            metrics: Arc::clone(&self.metrics),
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
        }
    }

    /// Tries every connection once and starts nothing.
    pub async fn check(&self, config: &Config) -> Vec<Checked> {
        self.manager.check(config).await
    }

    /// Moves all that the embedded database in a file holds into the configured one. Gives the
    /// number of rows.
    ///
    /// # Errors
    /// When the file or the database cannot be used.
    #[cfg(feature = "sqlite")]
    pub async fn migrate(
        &self,
        config: &Config,
        from: &std::path::Path,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<usize> {
        use anyhow::Context;

        use tokio_util::sync::CancellationToken;

        use crate::{
            backends::database,
            config::Startup,
            connection::{BuildContext, Settings},
            services::transfer,
        };

        anyhow::ensure!(
            config.database.backend != "sqlite",
            "the configured database is embedded itself; say where to move to, as by \
             DATABASE_URL=postgres://user@host/name"
        );
        let context = BuildContext {
            connection: "file",
            instance: Arc::clone(&self.instance),
            pool: config.database.pool.clone(),
            metrics: self.metrics.connection("file"),
            tasks: self.lifecycle.tasks.clone(),
            closing: CancellationToken::new(),
        };
        let file = database::open_file(from, &context).await.context("the file")?;
        let database = &self.manager.database;
        database.start(Settings { startup: Startup::Fail, ..(&config.database).into() });
        database.started().await.context(TargetUnusable)?;
        let backend = &config.execution_service.backend;
        let moved = transfer::move_all(&*file, &database.client(), backend, progress).await;
        file.close().await;
        self.manager.close().await;
        Ok(moved?)
    }

    /// What a build without the embedded database says.
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
        let executing = state.executions.clone().run(self.lifecycle.stop_work.clone());
        let executing = self.lifecycle.tasks.spawn(executing);
        let relay = state.relay.clone().run(self.lifecycle.stop_work.clone());
        let relaying = self.lifecycle.tasks.spawn(relay);

        let reloader = Arc::clone(&self.reloader);
        self.lifecycle.tasks.spawn(
            self.lifecycle
                .stop_work
                .clone()
                .run_until_cancelled_owned(reload_on_signal(reload_signal, reloader)),
        );

        // From here on clients are served, whatever is still to be made: every end drains.
        let exit = tokio::select! {
            signal = signals.next() => {
                tracing::info!("{signal} received, stopping");
                Exit::Clean
            }
            exit = self.until_refused(&config, begin) => exit,
        };
        let working =
            [("the hand-over of executions", executing), ("the relay of events", relaying)];
        let stopping = self.stop(&state, serving, working);
        tokio::select! {
            clean = stopping => Ok(if clean { exit } else { Exit::CutOff }),
            signal = signals.again() => {
                tracing::warn!("{signal} received again, ending at once");
                Ok(Exit::Impatient)
            }
        }
    }

    /// Waits for the connections that start is to wait for, then for the refusal that no waiting
    /// changes, if there ever is one.
    async fn until_refused(&self, config: &Config, begin: Instant) -> Exit {
        let started = tokio::select! {
            started = self.manager.started() => started,
            error = self.manager.database.refused() => Err(error),
        };
        if let Err(error) = started {
            let remedy = error.kind().remedy();
            tracing::error!(%error, remedy, "a connection that start needs cannot be made");
            return Exit::ConnectionUnavailable;
        }
        warn_of_left_behind(config).await;
        self.lifecycle.tasks.spawn(log_ready(self.manager.clone(), begin));
        let error = self.manager.database.refused().await;
        tracing::error!(%error, "the database refuses this program");
        Exit::ConnectionUnavailable
    }

    /// Runs the configured workflows on Temporal until the program is asked to stop.
    ///
    /// # Errors
    /// When signals cannot be received.
    #[cfg(feature = "worker")]
    pub async fn work(self, loaded: Loaded) -> anyhow::Result<Exit> {
        use crate::{backends::execution_service::worker, connection::Settings};

        let mut signals = Signals::listen()?;
        log_choices(&loaded);
        let config = loaded.config;
        if config.execution_service.backend != "temporal" {
            tracing::error!(
                "a worker needs Temporal: set TEMPORAL_ADDRESS, or execution_service.backend = \
                 \"temporal\""
            );
            return Ok(Exit::BadConfig);
        }
        let connection = Settings::from(&config.execution_service);
        let settings = worker::Settings {
            section: connection.section,
            instance: Arc::clone(&self.instance),
            pool: connection.pool,
            grace: config.server.shutdown_grace,
        };
        let workflows =
            config.workflows.iter().map(|(name, w)| (name.clone(), w.definition())).collect();
        let stop = self.lifecycle.stop_work.clone();
        let mut working = std::pin::pin!(worker::run(settings, workflows, stop.clone()));
        tokio::select! {
            worked = &mut working => return Ok(worker_exit(worked)),
            signal = signals.next() => tracing::info!("{signal} received, stopping"),
        }
        stop.cancel();
        tokio::select! {
            worked = &mut working => Ok(worker_exit(worked)),
            signal = signals.again() => {
                tracing::warn!("{signal} received again, ending at once");
                Ok(Exit::Impatient)
            }
        }
    }

    /// Not ready → serve on for a while → no new requests → work → connections, in reverse order.
    async fn stop(
        &self,
        state: &State,
        serving: tokio::task::JoinHandle<bool>,
        working: [(&'static str, tokio::task::JoinHandle<()>); 2],
    ) -> bool {
        let server = &state.config.server;
        state.draining.begin();
        sleep(server.drain_delay).await;
        let deadline = Instant::now() + server.shutdown_grace;
        let left =
            || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));

        self.lifecycle.stop_serving.cancel();
        let answered = serving.await.unwrap_or(false);
        if !answered {
            tracing::warn!("requests did not end in time and were cut off");
        }
        self.lifecycle.stop_work.cancel();
        let mut worked = true;
        for (part, task) in working {
            worked &= stopped_in_time(part, left(), async {
                let _ended = task.await.is_ok();
            })
            .await;
        }
        let closed = stopped_in_time("a connection", left(), self.manager.close()).await;
        self.lifecycle.tasks.close();
        let ended = stopped_in_time("a background task", left(), self.lifecycle.tasks.wait()).await;
        tracing::info!("stopped");
        answered && worked && closed && ended
    }
}

#[cfg(feature = "worker")]
fn worker_exit(worked: Result<(), crate::error::Error>) -> Exit {
    match worked {
        Ok(()) => {
            tracing::info!("stopped");
            Exit::Clean
        }
        Err(error) => {
            tracing::error!(%error, "the worker cannot run");
            Exit::Failed
        }
    }
}

/// Reads the configuration again at each SIGHUP.
async fn reload_on_signal(mut signal: ReloadSignal, reloader: Arc<Reloader>) {
    loop {
        signal.next().await;
        match reloader.reload().await {
            Ok(done) => tracing::info!(
                applied = ?done.applied,
                needs_restart = ?done.needs_restart,
                rebuilt = ?done.rebuilt,
                "SIGHUP received, the configuration was read again"
            ),
            Err(error) => {
                tracing::error!("SIGHUP received, but the configuration stays as it was: {error}");
            }
        }
    }
}

/// Says once that every connection which is needed works.
async fn log_ready(manager: ConnectionManager, begin: Instant) {
    manager.ready().await;
    let start_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(start_ms, "ready");
}

/// The move from the embedded database is easily forgotten.
async fn warn_of_left_behind(config: &Config) {
    #[cfg(feature = "sqlite")]
    if config.database.backend != "sqlite"
        && let Some((path, left)) = crate::backends::database::left_behind().await
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

/// Says which backends were chosen and by what.
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
