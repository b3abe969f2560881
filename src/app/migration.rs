//! The move from the embedded database to the configured one.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::{App, TargetUnusable};
use crate::{
    backends::database,
    config::{Config, Startup},
    connection::{BuildContext, Settings},
    services::transfer,
};

impl App {
    /// Moves everything that the embedded database in a file holds into the configured one. Returns
    /// the number of rows.
    ///
    /// # Errors
    /// When the file or the database cannot be used.
    pub async fn migrate(
        &self,
        config: &Config,
        from: &Path,
        progress: impl FnMut(usize),
    ) -> anyhow::Result<usize> {
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
}
