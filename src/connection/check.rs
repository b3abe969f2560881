//! Tries a connection without starting anything.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Backend, Managed, Settings, guard::bounded, slot::Slot};
use crate::error::Error;

/// The result of trying a connection.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The connection's name.
    pub name: &'static str,
    /// The backend that was tried.
    pub backend: String,
    /// Its address, without secrets.
    pub address: String,
    /// The error, or a note on a connection that works.
    pub result: Result<Option<&'static str>, Error>,
    /// How long that took.
    pub took: Duration,
}

impl<B: ?Sized + Backend> Managed<B> {
    /// Tries the connection as configured, lazy or not, within bounds. It is tried once: who asks
    /// again, such as a backend that builds on this connection, gets the same answer.
    pub async fn check(&self) -> Checked {
        self.slot.checked.get_or_init(|| self.slot.check()).await.clone()
    }
}

impl<B: ?Sized + Backend> Slot<B> {
    async fn check(&self) -> Checked {
        let begin = Instant::now();
        let settings = self.settings();
        let (backend, address) = settings.as_ref().map_or_else(
            |_not_configured| (String::new(), String::new()),
            |settings| (settings.backend.clone(), self.address(settings)),
        );
        let result = match settings {
            Ok(settings) => self.try_once(&settings).await,
            Err(error) => Err(error),
        };
        Checked { name: self.name, backend, address, result, took: begin.elapsed() }
    }

    fn address(&self, settings: &Arc<Settings>) -> String {
        let descriptors = self.registry.descriptors();
        let found = descriptors.iter().find(|descriptor| descriptor.name == settings.backend);
        found.map(|descriptor| descriptor.address(&settings.section)).unwrap_or_default()
    }

    async fn try_once(&self, settings: &Settings) -> Result<Option<&'static str>, Error> {
        let factory = self.registry.get(&settings.backend)?;
        let closing = CancellationToken::new();
        let _ended = closing.clone().drop_guard();
        let context = self.context(settings, closing);
        // Two connects, as `Factory::build_timeout` has by default, and a probe. Migrations, for
        // which databases have far more time, are left out.
        let limit = settings.pool.connect_timeout.saturating_mul(2) + settings.probe.timeout;
        bounded(limit, factory.check(&settings.section, &context)).await
    }
}
