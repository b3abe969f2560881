//! Accepted work that was refused for good: an operator inspects it, sends it again, or discards
//! it.

use super::{events::relay::Relay, executions::Executions};
use crate::{
    backends::database::{Database, DeadLetter, RejectedExecution},
    connection::Client,
    error::{Error, ErrorKind},
};

/// Dead letters of both destinations.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    database: Client<dyn Database>,
    relay: Relay,
    executions: Executions,
}

/// Identifies a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterId {
    /// An event, by its place in the database's sequence.
    Event(i64),
    /// An execution, by its id.
    Execution(String),
}

impl DeadLetters {
    /// The dead letters in `database`; `relay` delivers events again, `executions` starts
    /// executions again.
    #[must_use]
    pub fn new(database: Client<dyn Database>, relay: Relay, executions: Executions) -> Self {
        Self { database, relay, executions }
    }

    /// Events accepted before `before`, newest first.
    ///
    /// # Errors
    /// When the database cannot be queried.
    pub async fn events(&self, before: Option<i64>, limit: i64) -> Result<Vec<DeadLetter>, Error> {
        self.database.dead_letters(before, limit).await
    }

    /// Executions whose ids come after `after`, in the order of ids.
    ///
    /// # Errors
    /// When the database cannot be queried.
    pub async fn executions(
        &self,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<RejectedExecution>, Error> {
        self.database.rejected_executions(after, limit).await
    }

    /// Delivers an event again, after later events of its subject, or starts an execution as if it
    /// had never been tried.
    ///
    /// # Errors
    /// `NotFound`, or an error of the database.
    pub async fn redrive(&self, id: &LetterId) -> Result<(), Error> {
        match id {
            LetterId::Event(seq) => {
                let seq = *seq;
                let found = self.database.redrive(seq).await?;
                found_or_error(found)?;
                self.relay.redriven();
            }
            LetterId::Execution(id) => {
                found_or_error(self.executions.redrive(id).await?)?;
            }
        }
        Ok(())
    }

    /// Removes an event for good, or leaves an execution failed for good.
    ///
    /// # Errors
    /// `NotFound`, or an error of the database.
    pub async fn discard(&self, id: &LetterId) -> Result<(), Error> {
        let found = match id {
            LetterId::Event(seq) => {
                let seq = *seq;
                self.database.discard(seq).await?
            }
            LetterId::Execution(id) => self.database.discard_execution(id).await?,
        };
        found_or_error(found)
    }
}

fn found_or_error(found: bool) -> Result<(), Error> {
    if found {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, "there is no such dead letter"))
}
