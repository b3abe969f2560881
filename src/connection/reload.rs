//! Changes a connection while it is in use.
//!
//! New settings are taken in two steps, so that several connections change together or not at all:
//! [`Managed::prepare`] builds and probes what they need while the old backend serves,
//! [`Managed::commit`] puts it in use at once. The old backend is closed after its last caller.

use std::{fmt, sync::Arc};

use tokio::runtime::Handle;

use super::{Backend, Managed, Settings, census::Swap, live::Live, slot::Slot};
use crate::error::Error;

/// New settings and the backend they need, not in use yet. Dropped, it counts as
/// discarded, and what was built is closed.
pub struct Prepared<B: ?Sized + Backend> {
    settings: Arc<Settings>,
    /// While this is held, two backends live.
    live: Option<(Arc<Live<B>>, Swap)>,
    slot: Arc<Slot<B>>,
}

impl<B: ?Sized + Backend> Prepared<B> {
    /// True when the connection is rebuilt.
    #[must_use]
    pub fn rebuilds(&self) -> bool {
        self.live.is_some()
    }

    /// Closes the new backend, because another connection cannot change.
    pub async fn discard(mut self) {
        if let Some((live, _swap)) = self.live.take() {
            self.slot.census.discarded();
            live.retire().await;
        }
    }
}

/// Its owner may go away before it decides, as a request for a reload that is cancelled.
impl<B: ?Sized + Backend> Drop for Prepared<B> {
    fn drop(&mut self) {
        let Some((live, _swap)) = self.live.take() else { return };
        self.slot.census.discarded();
        // Without a runtime the process ends, and its connections with it.
        if Handle::try_current().is_ok() {
            self.slot.replaced(live);
        }
    }
}

impl<B: ?Sized + Backend> fmt::Debug for Prepared<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("rebuilds", &self.rebuilds()).finish_non_exhaustive()
    }
}

impl<B: ?Sized + Backend> Managed<B> {
    /// Builds what `settings` need and the current ones do not have. Policies need nothing.
    ///
    /// # Errors
    /// Why the new backend cannot be made. The old one serves on.
    pub async fn prepare(&self, settings: Settings) -> Result<Prepared<B>, Error> {
        let slot = &self.slot;
        let current = slot.settings()?;
        let settings = Arc::new(settings);
        let live = if slot.is_needed() && settings.need_another_backend_than(&current) {
            let swap = slot.census.swap();
            Some((slot.build_unless_closed(&settings).await?, swap))
        } else {
            None
        };
        Ok(Prepared { settings, live, slot: Arc::clone(slot) })
    }

    /// Puts prepared settings in use.
    pub fn commit(&self, mut prepared: Prepared<B>) {
        let slot = &self.slot;
        let (settings, live) = (Arc::clone(&prepared.settings), prepared.live.take());
        slot.guard.configure(&settings.policies);
        let (live, _swap) = live.unzip();
        let probe_took = live.as_ref().map(|live| live.probe_took);
        slot.replace_settings(&settings, live);
        if let Some(probe_took) = probe_took {
            slot.set_build_error(None);
            slot.record(probe_took, Ok(()), &settings);
        }
    }

    /// Rebuilds the connection with its current settings.
    ///
    /// # Errors
    /// Why the new backend cannot be made. The old one, if there is one, serves on.
    pub async fn reconnect(&self) -> Result<(), Error> {
        self.slot.need();
        self.slot.fly(true)?.await.map(|_live| ())
    }
}

impl Settings {
    pub(super) fn need_another_backend_than(&self, old: &Self) -> bool {
        self.backend != old.backend || self.section != old.section || self.pool != old.pool
    }
}
