//! Notifications between processes that share the database.

use async_trait::async_trait;

use crate::{error::Error, model::lanes::Slots};

/// Notifications between processes that share the database, so that new work need not wait for the
/// next poll.
#[async_trait]
pub trait Wakeups {
    /// Notifies the other processes that events of these slots wait.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wake_others(&self, slots: &Slots) -> Result<(), Error>;

    /// Waits until another process notifies, or may have notified unheard. Returns the slots in which
    /// events may wait. Never completes in a database that serves one process. Call it on a [`Lease`](crate::connection::Lease).
    ///
    /// # Errors
    /// When the connection to the database fails.
    async fn woken(&self) -> Result<Slots, Error>;
}
