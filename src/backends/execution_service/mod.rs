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
use jiff::SignedDuration;

use super::database::Database;
use crate::{
    config::{WellKnownVariable, verbatim},
    connection::{Backend, Managed, Registry},
    error::Error,
    model::{
        executions::{ListedEnd, Outcome, StartRequest},
        json::Json,
        time::{self, Timestamp},
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
    /// Where it stands, with its result or error. Never `accepted`. Its times are those of the
    /// backend's clock.
    pub outcome: Outcome,
    /// The time from its start to its end, if the backend reports it by another clock than ours.
    pub ran_for: Option<SignedDuration>,
}

/// A start that the backend reports later than ours by more than this is not the first of its runs,
/// because clocks do not differ as much.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(5);

impl Description {
    /// The outcome with its times on our clock, on which it was started at `started_at`: the
    /// duration is that of the backend.
    #[must_use]
    pub fn on_our_clock(self, started_at: Option<Timestamp>) -> Outcome {
        let mut outcome = self.outcome;
        let Some(started_at) = started_at else { return outcome };
        let is_first = outcome.started_at.is_none_or(|theirs| theirs - CLOCK_SKEW <= started_at);
        if let Some(ran_for) = self.ran_for.filter(|_| is_first) {
            outcome.finished_at = started_at.checked_add(ran_for).ok();
        }
        outcome.started_at = Some(started_at);
        // A start whose answer was lost is stored late.
        outcome.finished_at = outcome.finished_at.map(|at| at.min(time::now()).max(started_at));
        outcome
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What it shows.
    pub items: Vec<T>,
    /// The place of the next page, if there is one.
    pub next: Option<PageToken>,
}

/// A place in a list, which only the backend understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageToken(pub Vec<u8>);

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

    /// Executions that ended at or after `since` by the backend's clock, in any order: the first
    /// page, or the one at a place. The backend's view may lag behind, so ask with an overlap.
    ///
    /// # Errors
    /// When the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn ended_since(
        &self,
        since: Timestamp,
        page: Option<&PageToken>,
    ) -> Result<Page<ListedEnd>, Error>;

    /// The ids of the running executions: the first page, or the one at a place. The backend's view
    /// may lag behind.
    ///
    /// # Errors
    /// When the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn running(&self, page: Option<&PageToken>) -> Result<Page<String>, Error>;

    /// The outcomes of executions that a list showed as ended, without those that go on or no
    /// longer exist.
    ///
    /// # Errors
    /// When the backend cannot be asked.
    ///
    /// # Cancel safety
    /// Has no effect.
    async fn outcomes(&self, ended: &[ListedEnd]) -> Result<Vec<Description>, Error>;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::executions::Status;

    fn ended(started: Timestamp, ran_for: SignedDuration) -> Description {
        let outcome = Outcome {
            started_at: Some(started),
            ..Outcome::ended(Status::Failed, "x", started + ran_for)
        };
        Description { id: "a".to_owned(), outcome, ran_for: Some(ran_for) }
    }

    #[test]
    fn times_of_one_execution_are_in_order_by_one_clock() {
        let second = SignedDuration::from_secs(1);
        let began = time::now() - second * 60;
        let on_ours = |description: Description| {
            let outcome = description.on_our_clock(Some(began));
            (outcome.started_at.unwrap(), outcome.finished_at.unwrap())
        };
        // The backend's clock is behind, or ahead.
        assert_eq!(on_ours(ended(began - second * 90, second)), (began, began + second));
        assert_eq!(on_ours(ended(began + second * 2, second)), (began, began + second));
        // We learned of the start late.
        let (started, finished) = on_ours(ended(began - second * 90, second * 90));
        assert_eq!(started, began);
        assert!(began <= finished && finished <= time::now());
        // The last of a chain of runs: when it ended is all that is known.
        let last = ended(began + second * 30, second * 10);
        assert_eq!(on_ours(last), (began, began + second * 40));
        let unknown = ended(began, second).on_our_clock(None);
        assert_eq!(unknown.started_at, Some(began));
    }
}
