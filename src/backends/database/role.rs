//! A role as one process sees it.

use std::{sync::Arc, time::Duration};

use super::Database;
use crate::{connection::Client, error::Error};

/// Work that one process at a time does for all that share the database.
#[derive(Debug)]
pub struct Role {
    /// Where the processes meet.
    pub database: Client<dyn Database>,
    /// Its name there.
    pub name: &'static str,
    /// Identifies this process.
    pub owner: Arc<str>,
    /// One that died keeps the next out for so long.
    pub lease: Duration,
}

impl Role {
    /// Takes it, or keeps it for another lease. False while another process has it.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn take(&self) -> Result<bool, Error> {
        let (name, owner, lease) = (self.name, &*self.owner, self.lease);
        self.database.take_role(name, owner, lease).await
    }

    /// Lets the next process in at once, if the database can be told.
    pub async fn give_back(&self) {
        let (name, owner) = (self.name, &*self.owner);
        let given_back = self.database.give_role_back(name, owner).await;
        if let Err(error) = given_back {
            tracing::debug!(%error, role = name, "a role cannot be given back, it expires");
        }
    }
}
