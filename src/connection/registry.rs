//! Factories, and the table of a family's factories.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use super::Backend;
use crate::{
    config::{BackendDescriptor, Pool, Section},
    error::{Error, ErrorKind},
    tasks::Tasks,
    telemetry::metrics::ConnectionMetrics,
};

/// The input of a factory besides its own section.
#[derive(Clone, Debug)]
pub struct BuildContext {
    /// The connection that is made.
    pub connection: &'static str,
    /// Identifies this process among the replicas.
    pub instance: Arc<str>,
    /// How many pooled connections to hold and for how long.
    pub pool: Pool,
    /// The metrics of the connection.
    pub metrics: ConnectionMetrics,
    /// The tasks of the program, for which shutdown waits.
    pub tasks: Tasks,
    /// Cancelled when this backend is to stop its own tasks.
    pub closing: CancellationToken,
}

/// Builds one backend of the family `B` from its own section.
#[async_trait]
pub trait Factory<B: ?Sized + Backend>: Send + Sync + 'static {
    /// The backend's name, table and variables.
    fn descriptor(&self) -> BackendDescriptor;

    /// Connects, and returns once the backend is usable.
    ///
    /// # Errors
    /// When it cannot be reached, refuses us, or is unsuitable.
    ///
    /// # Cancel safety
    /// May be dropped at any await; what was opened so far is closed by its destructors.
    async fn build(&self, section: &Section, context: &BuildContext) -> Result<Arc<B>, Error>;

    /// Tries the connection as [`Factory::build`] and the probes do, and leaves everything as it was:
    /// nothing is migrated, nothing goes on afterwards. Gives what is worth knowing although it
    /// works.
    ///
    /// # Errors
    /// As [`Factory::build`] and [`Backend::probe`].
    ///
    /// # Cancel safety
    /// As [`Factory::build`].
    async fn check(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        let backend = self.build(section, context).await?;
        let probed = backend.probe().await;
        backend.close().await;
        probed.map(|()| None)
    }

    /// How long [`Factory::build`] may take.
    fn build_timeout(&self, pool: &Pool) -> Duration {
        pool.connect_timeout.saturating_mul(2)
    }
}

type Factories<B> = BTreeMap<&'static str, Arc<dyn Factory<B>>>;

/// The factories of one family, by backend name.
pub struct Registry<B: ?Sized> {
    family: &'static str,
    factories: RwLock<Factories<B>>,
    compiled_out: Vec<BackendDescriptor>,
}

impl<B: ?Sized + Backend> Registry<B> {
    /// An empty registry of `family`.
    #[must_use]
    pub fn new(family: &'static str) -> Self {
        Self { family, factories: RwLock::default(), compiled_out: Vec::new() }
    }

    /// Adds a factory.
    ///
    /// # Panics
    /// When the name is taken, which is a defect of the list of backends.
    #[must_use]
    pub fn register(self, factory: impl Factory<B>) -> Self {
        let name = factory.descriptor().name;
        let before = self.factories.write().insert(name, Arc::new(factory));
        assert!(before.is_none(), "{}: {name} is registered twice", self.family);
        self
    }

    /// Registers a backend that this build lacks, so that selecting it gives a remedy.
    #[must_use]
    pub fn compiled_out(mut self, backend: BackendDescriptor) -> Self {
        self.compiled_out.push(backend);
        self
    }

    /// The family's name.
    #[must_use]
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// All backends, as the configuration sees them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BackendDescriptor> {
        let factories = self.factories.read();
        let known = factories.values().map(|factory| factory.descriptor());
        known.chain(self.compiled_out.iter().cloned()).collect()
    }

    /// The factory of the backend `name`.
    ///
    /// # Errors
    /// When there is none; the message names those there are.
    pub fn get(&self, name: &str) -> Result<Arc<dyn Factory<B>>, Error> {
        let factories = self.factories.read();
        factories.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = factories.keys().copied().collect();
            let message =
                format!("{} has no backend {name:?}; there are {}", self.family, known.join(", "));
            Error::new(ErrorKind::Internal, message)
        })
    }
}

impl<B: ?Sized> fmt::Debug for Registry<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("family", &self.family)
            .field("backends", &self.factories.read().keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
