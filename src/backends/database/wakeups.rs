//! Notifications between processes that share the database.

use async_trait::async_trait;

use crate::error::Error;

/// Notifications between processes that share the database, so that new work need not wait for the
/// next poll.
#[async_trait]
pub trait Wakeups {
    /// Notifies the other processes that events wait.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wake_others(&self) -> Result<(), Error>;

    /// Waits until another process notifies, or may have notified unheard. Never completes in a
    /// database that serves one process. Call it on a [`Lease`](crate::connection::Lease).
    ///
    /// # Errors
    /// When the connection to the database fails.
    async fn woken(&self) -> Result<(), Error>;
}
