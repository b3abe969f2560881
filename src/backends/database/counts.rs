//! Counts of the accepted work that waits, made by one process for all.

use async_trait::async_trait;

use crate::{error::Error, model::backlog::Count};

/// Counts the accepted work that waits.
#[async_trait]
pub trait Counts {
    /// Counts it and stores the result for the other processes. Counting stops beyond a few times
    /// `most`, but tells for events of clients, events about executions and executions whether more
    /// than `most` wait.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn count_waiting(&self, most: i64) -> Result<Count, Error>;

    /// The count that was stored last. `None` in a database that serves one process, which stores
    /// none.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn counted(&self) -> Result<Option<Count>, Error>;
}
