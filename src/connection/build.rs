//! Making a connection's backend: one build at a time, after the settings that are in use when it
//! ends.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Backend, BuildContext, Settings,
    guard::bounded,
    live::Live,
    slot::{Flight, Slot},
};
use crate::{
    config::Startup,
    error::{Error, ErrorKind},
    telemetry::metrics::Outcome,
};

/// The outcome of a build.
enum Settled<B: ?Sized + Backend> {
    /// The backend in use now, or the error for which there is none.
    InUse(Result<Arc<Live<B>>, Error>),
    /// The settings were replaced, and nothing is in use yet.
    Outdated { built: Option<Arc<Live<B>>>, newest: Arc<Settings> },
}

impl<B: ?Sized + Backend> Slot<B> {
    /// The one build under way. However many callers come at once, they share it; it is a task of
    /// its own, so that none of them can cancel it for the others.
    pub(super) fn fly(self: &Arc<Self>, replace: bool) -> Result<Flight<B>, Error> {
        let settings = self.settings()?;
        let mut flight = self.flight.lock();
        if let Some(flight) = &*flight {
            return Ok(flight.clone());
        }
        if let Some(live) = self.live.load_full()
            && !replace
        {
            return Ok(futures_util::future::ready(Ok(live)).boxed().shared());
        }
        let slot = Arc::clone(self);
        let task = self.tasks.spawn(async move { slot.build_after_newest(settings).await });
        let new: Flight<B> = async move {
            task.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Internal, "the build ended early").with_source(error))
            })
        }
        .boxed()
        .shared();
        *flight = Some(new.clone());
        Ok(new)
    }

    /// Builds after `settings`, and anew if they are replaced meanwhile.
    async fn build_after_newest(
        self: Arc<Self>,
        mut settings: Arc<Settings>,
    ) -> Result<Arc<Live<B>>, Error> {
        let lazy = settings.startup == Startup::Lazy;
        let cause = if lazy { "first use" } else { "start" };
        self.standing.building(cause);
        loop {
            let begin = Instant::now();
            let built = self.build_unless_closed(&settings).await;
            match self.take_into_use(&settings, built, begin.elapsed()) {
                Settled::InUse(result) => return result,
                Settled::Outdated { built, newest } => {
                    if let Some(live) = built {
                        self.census.discarded();
                        live.retire().await;
                    }
                    settings = newest;
                }
            }
        }
    }

    /// The end of a build. The settings cannot be replaced meanwhile: either they have been, and
    /// what was built after the old ones is not used, or who replaces them finds it in use.
    fn take_into_use(
        self: &Arc<Self>,
        settings: &Arc<Settings>,
        built: Result<Arc<Live<B>>, Error>,
        took: Duration,
    ) -> Settled<B> {
        let current = self.settings.read();
        let newest = current.as_ref().filter(|newest| newest.need_another_backend_than(settings));
        if let Some(newest) = newest {
            // The new settings came with a backend of their own, or there is none yet.
            if let Some(live) = self.live.load_full() {
                *self.flight.lock() = None;
                self.discard(built);
                return Settled::InUse(Ok(live));
            }
            return Settled::Outdated { built: built.ok(), newest: Arc::clone(newest) };
        }
        if let Ok(live) = &built {
            self.swap_in(Arc::clone(live));
        }
        self.set_build_error(built.as_ref().err().cloned());
        // Cleared before the result is seen, so that a later caller starts a new build.
        *self.flight.lock() = None;
        // A failed successor says nothing about the backend in use, whose probes decide its state.
        if built.is_ok() || self.live.load().is_none() {
            // A health check that finds nothing to probe has failed.
            if built.is_err() {
                self.metrics.probes.of(Outcome::Failure).inc();
            }
            let took = built.as_ref().map_or(took, |live| live.probe_took);
            self.record(took, built.as_ref().map(|_| ()), settings);
        }
        Settled::InUse(built)
    }

    /// Closes a backend that was built with outdated settings.
    fn discard(self: &Arc<Self>, built: Result<Arc<Live<B>>, Error>) {
        if let Ok(live) = built {
            self.census.discarded();
            self.replaced(live);
        }
    }

    /// Puts new settings in use, with the backend that was made for them. One that was made after
    /// the old ones is not used any more.
    pub(super) fn replace_settings(
        self: &Arc<Self>,
        settings: &Arc<Settings>,
        made: Option<Arc<Live<B>>>,
    ) {
        let mut current = self.settings.write();
        let old = current.replace(Arc::clone(settings));
        let outdated = old.as_ref().is_none_or(|old| settings.need_another_backend_than(old));
        match made {
            Some(live) => self.swap_in(live),
            None if outdated => {
                if let Some(first_used_meanwhile) = self.live.swap(None) {
                    self.census.replaced();
                    self.replaced(first_used_meanwhile);
                }
            }
            None => {}
        }
        drop(current);
        if old.is_none_or(|old| old.probe.interval != settings.probe.interval) {
            self.pulse.new_pace();
        }
    }

    /// Builds a backend that nobody uses yet, and counts it.
    pub(super) async fn build_unless_closed(
        &self,
        settings: &Settings,
    ) -> Result<Arc<Live<B>>, Error> {
        let begin = Instant::now();
        let result = tokio::select! {
            biased;
            () = self.stop.cancelled() => {
                Err(Error::new(ErrorKind::Closed, format!("{} is closed", self.name)))
            }
            // A build that panics counts as failed; the next one starts afresh.
            result = AssertUnwindSafe(self.build(settings)).catch_unwind() => {
                result.unwrap_or_else(|_panic| {
                    Err(Error::new(ErrorKind::Internal, "the build panicked"))
                })
            }
        };
        self.metrics.build_seconds.observe(begin.elapsed().as_secs_f64());
        self.metrics.builds.of(Outcome::of(&result)).inc();
        result
    }

    async fn build(&self, settings: &Settings) -> Result<Arc<Live<B>>, Error> {
        let factory = self.registry.get(&settings.backend)?;
        let closing = CancellationToken::new();
        let context = self.context(settings, closing.clone());
        let abandoned = closing.clone().drop_guard();
        let limit = factory.build_timeout(&settings.pool);
        let backend = bounded(limit, factory.build(&settings.section, &context)).await?;
        let begin = Instant::now();
        let probed = bounded(settings.probe.timeout, backend.probe()).await;
        let probe_took = begin.elapsed();
        if let Err(error) = probed {
            backend.close().await;
            return Err(error);
        }
        self.count_probe(probe_took, true);
        abandoned.disarm();
        Ok(Arc::new(Live {
            backend,
            probe_took,
            in_use: AtomicUsize::new(0),
            idle: Notify::new(),
            awaited: AtomicBool::new(false),
            retiring: CancellationToken::new(),
            closing,
            _alive: self.census.built(),
        }))
    }

    pub(super) fn context(&self, settings: &Settings, closing: CancellationToken) -> BuildContext {
        BuildContext {
            connection: self.name,
            instance: Arc::clone(&self.instance),
            pool: settings.pool.clone(),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            closing,
        }
    }
}
