//! Ends executions early.
//!
//! Owns the wishes that were stored before their executions ran. Called by the facade for clients,
//! and by the follower once an execution is known to run.

use std::sync::Arc;

use super::{
    Parts,
    records::{Records, announcement},
};
use crate::{
    backends::{database::Ended, execution_service::ExecutionService},
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        executions::{Ending, Execution, OpenExecution},
        time,
    },
};

/// Wishes that are sent in one round.
const BATCH: i64 = 200;

/// Wishes to end executions.
#[derive(Debug)]
pub(super) struct Endings {
    records: Arc<Records>,
    service: Client<dyn ExecutionService>,
}

impl Endings {
    pub(super) fn new(records: &Arc<Records>, parts: &Parts) -> Self {
        Self { records: Arc::clone(records), service: parts.service.clone() }
    }

    /// Ends an execution that no backend has seen, or stores the wish.
    pub(super) async fn end_accepted(
        &self,
        execution: &Execution,
        ending: &Ending,
    ) -> Result<Ended, Error> {
        let execution = &OpenExecution::from(execution);
        let (id, outcome) = (&execution.id, &ending.before_start(time::now()));
        let announcement = &announcement(execution, outcome);
        let ended = self.records.database.end_accepted(id, ending, outcome, announcement).await?;
        if ended == Ended::Now {
            self.records.changed(execution, outcome.status, 1);
        }
        Ok(ended)
    }

    pub(super) async fn send(&self, id: &str, ending: &Ending) -> Result<(), Error> {
        match ending {
            Ending::Cancel => self.service.cancel(id).await,
            Ending::Terminate { reason } => self.service.terminate(id, reason).await,
        }
    }

    /// Sends the wishes that were stored before their executions ran.
    pub(super) async fn send_wished(&self) -> Result<(), Error> {
        let backend = &self.records.backend;
        let wished = self.records.database.wished_endings(backend, BATCH).await?;
        for (id, ending) in wished {
            let id = &*id;
            let ending = match ending {
                Ok(ending) => ending,
                // The wish can never be read, and must not block others for ever.
                Err(error) => {
                    tracing::error!(%error, execution.id = id, "a wish to end is given up");
                    self.forget_wish(id).await?;
                    continue;
                }
            };
            match self.send(id, &ending).await {
                // The execution has ended by itself; the follower finds out how.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.kind().is_outage() => return Err(error),
                // The wishes of others must not wait for this one.
                Err(error) => {
                    tracing::warn!(%error, execution.id = id, "an execution cannot be ended");
                    continue;
                }
                Ok(()) => {}
            }
            self.forget_wish(id).await?;
        }
        Ok(())
    }

    async fn forget_wish(&self, id: &str) -> Result<(), Error> {
        self.records.database.forget_wish(id).await
    }
}
