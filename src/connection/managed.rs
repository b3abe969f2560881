//! The managed connection as its owner sees it: configured, started, reported on, closed.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    Backend, Client, ConnectionReport, Family, Force, Policies, Registry, Service, Transition,
    slot::Slot,
};
use crate::{
    config::{self, BackendDescriptor, Pool, Probe, Section, Startup},
    error::{Error, ErrorKind},
    tasks::Tasks,
    telemetry::metrics::ConnectionMetrics,
};

/// The configuration of a connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The backend to build.
    pub backend: String,
    /// Its table.
    pub section: Section,
    /// The time at which it is built.
    pub startup: Startup,
    /// How long start waits.
    pub startup_timeout: Duration,
    /// Whether an outage makes the instance unhealthy.
    pub required: bool,
    /// Its pool.
    pub pool: Pool,
    /// The policies that the guard applies to its calls.
    pub policies: Policies,
    /// Its probes.
    pub probe: Probe,
}

impl From<&config::Connection> for Settings {
    fn from(config: &config::Connection) -> Self {
        Self {
            backend: config.backend.clone(),
            section: config.backends.get(&config.backend).cloned().unwrap_or_default(),
            startup: config.startup,
            startup_timeout: config.startup_timeout,
            required: config.required,
            pool: config.pool.clone(),
            policies: Policies {
                timeout: config.timeout.clone(),
                retry: config.retry.clone(),
                circuit_breaker: config.circuit_breaker.clone(),
                concurrency: config.concurrency.clone(),
            },
            probe: config.probe.clone(),
        }
    }
}

/// A managed connection. Clones share one slot.
pub struct Managed<B: ?Sized + Backend> {
    pub(super) slot: Arc<Slot<B>>,
}

impl<B: ?Sized + Backend> Clone for Managed<B> {
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot) }
    }
}

impl<B: ?Sized + Backend> fmt::Debug for Managed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Managed").field(&self.slot.name).finish()
    }
}

impl<B: ?Sized + Backend> Managed<B> {
    /// An empty slot. Nothing is built before [`Managed::start`].
    #[must_use]
    pub fn new(
        registry: Registry<B>,
        instance: Arc<str>,
        metrics: ConnectionMetrics,
        tasks: Tasks,
    ) -> Self
    where
        B: Family,
    {
        for operation in B::OPERATIONS {
            metrics.declare_call(operation.name);
        }
        Self { slot: Arc::new(Slot::new(registry, instance, metrics, tasks)) }
    }

    /// The connection as its callers see it.
    #[must_use]
    pub fn client(&self) -> Client<B> {
        Client::new(Arc::clone(&self.slot))
    }

    /// The connection's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.slot.name
    }

    /// The backends that can serve it, as the configuration sees them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BackendDescriptor> {
        self.slot.registry.descriptors()
    }

    /// Stores the settings without using them yet.
    pub fn configure(&self, settings: Settings) {
        self.slot.guard.configure(&settings.policies);
        *self.slot.settings.write() = Some(Arc::new(settings));
    }

    /// Stores the settings and starts to watch the connection.
    pub fn start(&self, settings: Settings) {
        if settings.startup != Startup::Lazy {
            self.slot.need();
        }
        self.slot.pulse.begin(settings.probe.interval);
        self.configure(settings);
        let Slot { name, tasks, stop, .. } = &*self.slot;
        tasks.keep_until(format!("{name}_probes"), stop, &self.slot, Slot::supervise);
    }

    /// Waits as `startup` says.
    ///
    /// # Errors
    /// With `startup = "fail"`, when the connection cannot be made in time.
    pub async fn started(&self) -> Result<(), Error> {
        let Some(settings) = self.slot.settings.read().clone() else { return Ok(()) };
        if !matches!(settings.startup, Startup::Wait | Startup::Fail) {
            return Ok(());
        }
        let mut changed = self.slot.standing.subscribe();
        let initialized = changed.wait_for(|service| *service == Service::Initialized);
        let in_time = timeout(settings.startup_timeout, initialized).await.is_ok();
        if in_time || settings.startup == Startup::Wait {
            return Ok(());
        }
        let (name, backend) = (self.slot.name, &settings.backend);
        let failed = format!("{name} cannot be made with the backend {backend:?}");
        let error = self.slot.build_error();
        Err(error.map_or_else(
            || Error::new(ErrorKind::Timeout, failed.clone()),
            |error| Error::new(error.kind(), failed.clone()).with_source(error),
        ))
    }

    /// Waits until the connection works, if it is required.
    pub async fn initialized_if_required(&self) {
        let required = self.slot.settings.read().as_ref().is_some_and(|settings| settings.required);
        let mut changed = self.slot.standing.subscribe();
        if required {
            tokio::select! {
                initialized = changed.wait_for(|service| *service == Service::Initialized) => {
                    let _state = initialized.is_ok();
                }
                () = self.slot.stop.cancelled() => {}
            }
        }
    }

    /// Completes when the backend turns out not to be usable by this version of the program, which
    /// no waiting changes.
    pub async fn refused(&self) -> Error {
        let mut changed = self.slot.standing.subscribe();
        loop {
            let error = self.slot.build_error();
            if let Some(error) = error.filter(|error| error.kind() == ErrorKind::Incompatible) {
                return error;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops watching, waits for the last callers and closes the backend.
    pub async fn close(&self) {
        self.slot.stop.cancel();
        let live = self.slot.live.swap(None);
        if let Some(live) = live {
            live.retire().await;
        }
        self.slot.standing.closed();
    }

    /// Lets an operator force the circuit breaker, or returns it to automatic control.
    pub fn force_circuit(&self, force: Force) {
        self.slot.guard.force(force);
    }

    /// How often the state, or the breaker's, has changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.slot.standing.timeline().count()
    }

    /// The last changes of state, oldest first.
    #[must_use]
    pub fn timeline(&self) -> Vec<Transition> {
        self.slot.standing.timeline().last()
    }

    /// Brings its gauges up to date, for a scrape.
    pub fn collect(&self) {
        self.slot.collect();
    }

    /// The current report on the connection. Does no I/O.
    #[must_use]
    pub fn report(&self) -> ConnectionReport {
        self.slot.report()
    }
}
