//! Work that one process does for all that share the database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::Database;
use crate::{connection::Client, error::Error};

/// Work that one process does for all that share the database.
#[async_trait]
pub trait Roles {
    /// Takes a role, or keeps it for another `lease`. False while another process holds it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn take_role(&self, role: &str, owner: &str, lease: Duration) -> Result<bool, Error>;

    /// Gives a role back, if `owner` still has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn give_role_back(&self, role: &str, owner: &str) -> Result<(), Error>;

    /// Removes what is left of processes that were not seen for so long.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget_processes(&self, silent_for: Duration) -> Result<(), Error>;
}

/// A role as one process sees it: work that one process at a time does for all.
#[derive(Debug)]
pub struct Role {
    database: Client<dyn Database>,
    name: &'static str,
    owner: Arc<str>,
    lease: Duration,
    /// When this process took it, or took it again.
    taken: Option<Instant>,
}

impl Role {
    /// The role `name`, which `owner` does not have yet. One that died keeps the next out for
    /// `lease`.
    #[must_use]
    pub fn new(
        database: Client<dyn Database>,
        name: &'static str,
        owner: Arc<str>,
        lease: Duration,
    ) -> Self {
        Self { database, name, owner, lease, taken: None }
    }

    /// Takes it, or keeps it for another lease once a third of the last one has passed. False while
    /// another process has it. An error does not end a lease: it may be held still.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn hold(&mut self) -> Result<bool, Error> {
        if self.taken.is_some_and(|at| at.elapsed() <= self.lease / 3) {
            return Ok(true);
        }
        // The time begins before the database counts it from.
        let now = Instant::now();
        let held = self.take().await?;
        self.taken = held.then_some(now);
        Ok(held)
    }

    /// Takes it, or keeps it for another lease. False while another process has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn take(&self) -> Result<bool, Error> {
        self.database.take_role(self.name, &self.owner, self.lease).await
    }

    /// Lets the next process in at once, if the database can be told.
    pub async fn give_back(&self) {
        if let Err(error) = self.database.give_role_back(self.name, &self.owner).await {
            tracing::debug!(%error, role = self.name, "a role cannot be given back, it expires");
        }
    }
}
