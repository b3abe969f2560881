//! How processes that share the database wake each other.

use async_trait::async_trait;

use crate::error::Error;

/// What processes that share the database tell each other, so that work does not wait until it is
/// looked for.
#[async_trait]
pub trait Wakeups {
    /// Tells the others that events wait.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn wake_others(&self) -> Result<(), Error>;

    /// Waits until another tells it, or may have told it unheard. For ever in a database that
    /// serves one process. Call it on a [`Lease`](crate::connection::Lease).
    ///
    /// # Errors
    /// When the database cannot be asked any more.
    async fn woken(&self) -> Result<(), Error>;
}
