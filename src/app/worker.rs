//! The worker: runs workflows on Temporal, without an API.

use std::{pin::pin, sync::Arc};

use super::{App, log_choices};
use crate::{
    backends::execution_service::worker,
    config::Loaded,
    connection::Settings,
    error::Error,
    lifecycle::{Exit, Signals},
};

impl App {
    /// Runs the configured workflows on Temporal until the program is asked to stop.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub async fn work(self, loaded: Loaded) -> anyhow::Result<Exit> {
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
        let mut working = pin!(worker::run(settings, workflows, stop.clone()));
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
}

fn worker_exit(worked: Result<(), Error>) -> Exit {
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
