//! Work that one process does for all that share the database.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::Database;
use crate::{connection::Client, error::Error};

/// Work that one process does for all that share the database.
#[async_trait]
pub trait Roles {
    /// Acquires a role, or renews it for another `lease`. False while another process holds it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn take_role(&self, role: &str, owner: &str, lease: Duration) -> Result<bool, Error>;

    /// Releases a role, if `owner` still holds it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn give_role_back(&self, role: &str, owner: &str) -> Result<(), Error>;

    /// Removes the rows of processes that have been silent for this long.
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
    /// When this process acquired or last renewed the role.
    taken: Option<Instant>,
}

impl Role {
    /// The role `name`, which `owner` does not hold yet. A holder that dies blocks the next one for
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

    /// Acquires the role, or renews it once a third of the lease has passed. False while another
    /// process holds it. An error does not end a lease, which may still be held.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn hold(&mut self) -> Result<bool, Error> {
        if self.taken.is_some_and(|at| at.elapsed() <= self.lease / 3) {
            return Ok(true);
        }
        // Taken before the call, so that our lease ends no later than the one in the database.
        let now = Instant::now();
        let held = self.take().await?;
        self.taken = held.then_some(now);
        Ok(held)
    }

    /// Acquires the role, or renews it. False while another process holds it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn take(&self) -> Result<bool, Error> {
        self.database.take_role(self.name, &self.owner, self.lease).await
    }

    /// Releases the role, so that the next process can take it at once, if the database can be
    /// reached.
    pub async fn give_back(&self) {
        if let Err(error) = self.database.give_role_back(self.name, &self.owner).await {
            tracing::debug!(%error, role = self.name, "a role cannot be given back, it expires");
        }
    }
}
