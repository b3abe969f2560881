//! Execution services: they run workflows durably.

mod client;
mod embedded;
mod step;
#[cfg(feature = "temporal")]
mod temporal;

#[cfg(test)]
mod contract;

#[cfg(feature = "worker")]
pub use self::temporal::worker;

use std::time::Duration;

use async_trait::async_trait;

use super::database::Database;
use crate::{
    config::{WellKnownVariable, verbatim},
    connection::{Backend, Managed, Registry},
    error::Error,
    model::{
        executions::{Outcome, StartRequest},
        json::Json,
        time::Timestamp,
    },
};

/// The name of the family.
pub const FAMILY: &str = "execution_service";

/// Variables of the Temporal backend, known even to a build without it, which must refuse them.
const TEMPORAL_VARIABLES: [WellKnownVariable; 4] = [
    variable("TEMPORAL_ADDRESS", "address", true),
    variable("TEMPORAL_SERVER_URL", "address", true),
    variable("TEMPORAL_NAMESPACE", "namespace", false),
    variable("TEMPORAL_TASK_QUEUE", "task_queue", false),
];

const fn variable(name: &'static str, key: &'static str, selects: bool) -> WellKnownVariable {
    WellKnownVariable { name, key, selects, read: verbatim }
}

/// An execution as its backend sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// The execution's id.
    pub id: String,
    /// Where it stands, with its result or error. Never `accepted`.
    pub outcome: Outcome,
}

/// How a backend answers a request to start an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs, or has run.
    Started,
    /// It was first tried so long ago that the backend may have forgotten it: nothing was done.
    TooLate,
}

/// Runs executions durably.
#[async_trait]
pub trait ExecutionService: Backend {
    /// Starts an execution, once however often the same request id is handed over.
    ///
    /// # Errors
    /// `AlreadyExists` when another request holds the id; `Unsupported` when the backend cannot
    /// run this kind of workflow.
    ///
    /// # Cancel safety
    /// A dropped call may have started it; hand it over again with the same request id.
    async fn start(&self, request: &StartRequest) -> Result<Started, Error>;

    /// Where an execution stands.
    ///
    /// # Errors
    /// `NotFound` when the backend does not know it.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn describe(&self, id: &str) -> Result<Description, Error>;

    /// Executions that ended at or after `since`, oldest first, at most `limit`. The backend's view
    /// may lag behind, so ask with an overlap.
    ///
    /// # Errors
    /// When the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn list(&self, since: Timestamp, limit: usize) -> Result<Vec<Description>, Error>;

    /// Waits up to `wait` for an execution to end. Call it on a
    /// [`Lease`](crate::connection::Lease), because no timeout of the guard fits it.
    ///
    /// # Errors
    /// `NotFound` when the backend does not know it.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn until_ended(&self, id: &str, wait: Duration) -> Result<(), Error>;

    /// Waits up to `wait` for an execution to end, and says where it stands then.
    #[cfg(test)]
    async fn result(&self, id: &str, wait: Duration) -> Result<Description, Error> {
        self.until_ended(id, wait).await?;
        self.describe(id).await
    }

    /// Sends a signal to a running execution.
    ///
    /// # Errors
    /// `NotFound` when it is not running; `Unsupported` when the backend has no signals.
    ///
    /// # Cancel safety
    /// A dropped call may have sent it.
    async fn signal(&self, id: &str, name: &str, input: &Json) -> Result<(), Error>;

    /// Asks a question of an execution.
    ///
    /// # Errors
    /// `NotFound`, `InvalidInput` when it has no such query, `Unsupported`.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn query(&self, id: &str, name: &str, input: &Json) -> Result<Json, Error>;

    /// Asks an execution to end. It may clean up, and it may take its time.
    ///
    /// # Errors
    /// `NotFound` when it is not running.
    ///
    /// # Cancel safety
    /// A dropped call may have asked; asking again changes nothing.
    async fn cancel(&self, id: &str) -> Result<(), Error>;

    /// Ends an execution by force.
    ///
    /// # Errors
    /// `NotFound` when it is not running.
    ///
    /// # Cancel safety
    /// A dropped call may have ended it; ending it again changes nothing.
    async fn terminate(&self, id: &str, reason: &str) -> Result<(), Error>;
}

/// The execution services of this build.
#[must_use]
pub fn registry(database: Managed<dyn Database>) -> Registry<dyn ExecutionService> {
    let registry = Registry::new(FAMILY).register(embedded::Factory::new(database));
    #[cfg(feature = "temporal")]
    let registry = registry.register(temporal::Factory);
    #[cfg(not(feature = "temporal"))]
    let registry =
        registry.compiled_out(super::compiled_out(FAMILY, "temporal", &TEMPORAL_VARIABLES));
    registry
}
