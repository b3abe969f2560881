//! Changing a connection while it is used.
//!
//! New settings are taken in two steps, so that several connections change together or not at all:
//! [`Managed::prepare`] builds and probes what they need while the old backend serves,
//! [`Managed::commit`] puts it in use at once. The old backend is closed after its last caller.

use std::{fmt, sync::Arc};

use super::{Backend, Managed, Settings, live::Live, slot::Slot};
use crate::error::Error;

/// New settings and the backend they need, not in use yet. Dropped, it is as if nothing had been.
pub struct Prepared<B: ?Sized + Backend> {
    settings: Arc<Settings>,
    live: Option<Arc<Live<B>>>,
}

impl<B: ?Sized + Backend> Prepared<B> {
    /// Whether the connection is made anew.
    #[must_use]
    pub fn rebuilds(&self) -> bool {
        self.live.is_some()
    }

    /// Closes what was built, because another connection cannot change.
    pub async fn discard(self) {
        if let Some(live) = self.live {
            live.retire().await;
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
            let live = slot.build_unless_closed(&settings).await?;
            slot.rebuilds.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Some(live)
        } else {
            None
        };
        Ok(Prepared { settings, live })
    }

    /// Puts prepared settings in use.
    pub fn commit(&self, prepared: Prepared<B>) {
        let slot = &self.slot;
        let Prepared { settings, live } = prepared;
        slot.guard.configure(&settings.policies);
        let made = live.is_some();
        slot.replace_settings(&settings, live);
        if made {
            *slot.build_error.lock() = None;
            slot.record(std::time::Duration::ZERO, Ok(()), &settings);
        }
    }

    /// Makes the connection anew, with the settings it has.
    ///
    /// # Errors
    /// Why the new backend cannot be made. The old one, if there is one, serves on.
    pub async fn reconnect(&self) -> Result<(), Error> {
        self.slot.make_needed();
        self.slot.fly(true)?.await.map(|_live| ())
    }
}

impl Settings {
    pub(super) fn need_another_backend_than(&self, old: &Self) -> bool {
        self.backend != old.backend || self.section != old.section || self.pool != old.pool
    }
}

impl<B: ?Sized + Backend> Slot<B> {
    fn is_needed(&self) -> bool {
        self.needed.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn make_needed(&self) {
        self.needed.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
