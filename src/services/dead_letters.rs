//! Accepted work that was refused for good: an operator looks at it, sends it again, or gives it up.

use super::{executions::Executions, relay::Relay};
use crate::{
    backends::database::{Database, DeadLetter, RejectedExecution},
    connection::{Managed, Operation},
    error::{Error, ErrorKind},
};

const LIST_EVENTS: Operation = Operation::idempotent("dead_letters");
const LIST_EXECUTIONS: Operation = Operation::idempotent("rejected_executions");
// Their answers tell whether this very call did it, so they are made once.
const REDRIVE_EVENT: Operation = Operation::once("redrive");
const REDRIVE_EXECUTION: Operation = Operation::once("redrive_execution");
const DISCARD_EVENT: Operation = Operation::once("discard");
const DISCARD_EXECUTION: Operation = Operation::once("discard_execution");

/// Dead letters of both destinations.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    database: Managed<dyn Database>,
    relay: Relay,
    executions: Executions,
}

/// Which dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LetterId {
    /// An event, by its place in the database's sequence.
    Event(i64),
    /// An execution, by its id.
    Execution(String),
}

impl DeadLetters {
    /// Those in `database`; `relay` hands events over again, and `executions` executions.
    #[must_use]
    pub fn new(database: Managed<dyn Database>, relay: Relay, executions: Executions) -> Self {
        database.declare(&[LIST_EVENTS, REDRIVE_EVENT, DISCARD_EVENT]);
        database.declare(&[LIST_EXECUTIONS, REDRIVE_EXECUTION, DISCARD_EXECUTION]);
        Self { database, relay, executions }
    }

    /// Events accepted before `before`, newest first.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn events(&self, before: Option<i64>, limit: i64) -> Result<Vec<DeadLetter>, Error> {
        self.database
            .call(LIST_EVENTS, |database| async move { database.dead_letters(before, limit).await })
            .await
    }

    /// Executions whose ids come after `after`, in the order of ids.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn executions(
        &self,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<RejectedExecution>, Error> {
        self.database
            .call(LIST_EXECUTIONS, |database| async move {
                database.rejected_executions(after, limit).await
            })
            .await
    }

    /// Hands one over again: an event after later events of its subject, an execution as if it had
    /// never been tried.
    ///
    /// # Errors
    /// `NotFound`, or why the database cannot be asked.
    pub async fn redrive(&self, id: &LetterId) -> Result<(), Error> {
        match id {
            LetterId::Event(seq) => {
                let seq = *seq;
                let found = self
                    .database
                    .call(REDRIVE_EVENT, |database| async move { database.redrive(seq).await })
                    .await?;
                found_or_error(found)?;
                self.relay.accepted(1);
            }
            LetterId::Execution(id) => {
                let found = self
                    .database
                    .call(REDRIVE_EXECUTION, |database| async move {
                        database.redrive_execution(id).await
                    })
                    .await?;
                found_or_error(found)?;
                self.executions.redriven(id);
            }
        }
        Ok(())
    }

    /// Removes an event for good; leaves an execution failed for good.
    ///
    /// # Errors
    /// `NotFound`, or why the database cannot be asked.
    pub async fn discard(&self, id: &LetterId) -> Result<(), Error> {
        let found = match id {
            LetterId::Event(seq) => {
                let seq = *seq;
                self.database
                    .call(DISCARD_EVENT, |database| async move { database.discard(seq).await })
                    .await?
            }
            LetterId::Execution(id) => {
                self.database
                    .call(DISCARD_EXECUTION, |database| async move {
                        database.discard_execution(id).await
                    })
                    .await?
            }
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
