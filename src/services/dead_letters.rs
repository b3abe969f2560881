//! Events that the broker refused for good: an operator looks at them, sends them again, or gives
//! them up.

use super::relay::Relay;
use crate::{
    backends::database::{Database, DeadLetter},
    connection::{Managed, Operation},
    error::{Error, ErrorKind},
};

const LIST: Operation = Operation::idempotent("dead_letters");
// Their answers tell whether this very call did it, so they are made once.
const REDRIVE: Operation = Operation::once("redrive");
const DISCARD: Operation = Operation::once("discard");

/// Dead letters of the outbox.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    database: Managed<dyn Database>,
    relay: Relay,
}

impl DeadLetters {
    /// Those in `database`, which `relay` hands over.
    #[must_use]
    pub fn new(database: Managed<dyn Database>, relay: Relay) -> Self {
        database.declare(&[LIST, REDRIVE, DISCARD]);
        Self { database, relay }
    }

    /// Dead letters accepted before `before`, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn list(&self, before: Option<i64>, limit: i64) -> Result<Vec<DeadLetter>, Error> {
        self.database
            .call(LIST, |database| async move { database.dead_letters(before, limit).await })
            .await
    }

    /// Hands one over again, after later events of its subject.
    ///
    /// # Errors
    /// `NotFound`, or why the database cannot be asked.
    pub async fn redrive(&self, seq: i64) -> Result<(), Error> {
        let found = self
            .database
            .call(REDRIVE, |database| async move { database.redrive(seq).await })
            .await?;
        self.relay.accepted(usize::from(found));
        found_or_error(found, seq)
    }

    /// Removes one for good.
    ///
    /// # Errors
    /// `NotFound`, or why the database cannot be asked.
    pub async fn discard(&self, seq: i64) -> Result<(), Error> {
        let found = self
            .database
            .call(DISCARD, |database| async move { database.discard(seq).await })
            .await?;
        found_or_error(found, seq)
    }
}

fn found_or_error(found: bool, seq: i64) -> Result<(), Error> {
    if found {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, format!("there is no dead letter {seq}")))
}
