//! Workflows and their executions.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use strum::VariantArray;

use super::{
    backoff::Backoff,
    json::Json,
    time::{self, Timestamp},
};

/// Where an execution stands.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, VariantArray,
)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Stored, not yet acknowledged by the backend.
    Accepted,
    /// Acknowledged by the backend.
    Running,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended because its cancellation was asked for.
    Cancelled,
    /// Ended by force.
    Terminated,
    /// Ended because its time was up.
    TimedOut,
}

impl Status {
    /// Every status.
    pub const ALL: &[Self] = Self::VARIANTS;

    /// Stable name, as it appears in the API, the database and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Terminated => "terminated",
            Self::TimedOut => "timed_out",
        }
    }

    /// True when the status is final.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Accepted | Self::Running)
    }

    /// The type of the event that announces this status.
    #[must_use]
    pub const fn event_type(self) -> &'static str {
        match self {
            Self::Accepted => "execution.accepted",
            Self::Running => "execution.started",
            Self::Completed => "execution.completed",
            Self::Failed => "execution.failed",
            Self::Cancelled => "execution.cancelled",
            Self::Terminated => "execution.terminated",
            Self::TimedOut => "execution.timed_out",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a status"))
    }
}

/// What a workflow does when it is executed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workflow {
    /// Gives its input back.
    Echo {
        /// How long it takes.
        delay: Duration,
    },
    /// Sends its input to a URL; the JSON answer is the result.
    Http {
        /// Where to.
        url: String,
        /// Time for one try.
        timeout: Duration,
        /// When to try again.
        retry: StepRetry,
        /// The largest answer, in bytes.
        // The release before stored none.
        #[serde(default = "Workflow::default_max_answer")]
        max_answer: usize,
    },
    /// Runs on workers elsewhere, in any language.
    Temporal {
        /// The workflow type those workers register.
        workflow_type: String,
        /// The task queue they poll; the connection's own if unset.
        task_queue: Option<String>,
    },
}

impl Workflow {
    /// The largest answer of a service, in bytes, where nothing is said.
    pub const MAX_ANSWER: usize = 1 << 20;

    const fn default_max_answer() -> usize {
        Self::MAX_ANSWER
    }
}

/// When a failed step is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRetry {
    /// Tries in all, the first one included.
    pub max_attempts: u32,
    /// Pause before the second try.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
    /// Growth of the pause from try to try.
    pub multiplier: f64,
}

impl StepRetry {
    /// The pause after `tries` failed tries.
    #[must_use]
    pub fn pause_after(&self, tries: u32) -> Duration {
        let Self { initial_backoff, multiplier, max_backoff, .. } = *self;
        Backoff { initial: initial_backoff, multiplier, max: max_backoff }.pause_after(tries)
    }
}

/// One run of a workflow, as the database records it.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// Its id.
    pub id: String,
    /// The workflow's name.
    pub workflow: String,
    /// What it was given.
    pub input: Json,
    /// Where it stands.
    pub status: Status,
    /// What it gave, when completed.
    pub result: Option<Json>,
    /// Why it ended otherwise.
    pub error: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the backend acknowledged it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When the backend last confirmed the status.
    pub confirmed_at: Option<Timestamp>,
    /// The backend that serves it, for good.
    pub backend: String,
    /// Identifies our hand-over to the backend, so that repeating it starts nothing twice.
    pub request_id: String,
    /// Time it may take in all.
    pub timeout: Option<Duration>,
    /// What it does, as the configuration said when it was accepted.
    pub definition: Workflow,
    /// The trace of the request that asked for it, as W3C's `traceparent`.
    pub traceparent: Option<String>,
}

impl Execution {
    /// The record after a change.
    #[must_use]
    pub fn after(&self, outcome: &Outcome) -> Self {
        Self {
            status: outcome.status,
            result: outcome.result.clone(),
            error: outcome.error.clone(),
            // The start that was stored first stands; clocks of backends differ from ours.
            started_at: self.started_at.or(outcome.started_at),
            finished_at: outcome.finished_at,
            confirmed_at: Some(time::now()),
            ..self.clone()
        }
    }
}

/// What it takes to follow an execution that has not ended: nothing that can be large, and nothing
/// that might not be readable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenExecution {
    /// Its id.
    pub id: String,
    /// The workflow's name.
    pub workflow: String,
    /// Where it stands.
    pub status: Status,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the backend acknowledged it.
    pub started_at: Option<Timestamp>,
    /// When the backend last confirmed the status.
    pub confirmed_at: Option<Timestamp>,
    /// The trace of the request that asked for it, as W3C's `traceparent`.
    pub traceparent: Option<String>,
}

impl From<&Execution> for OpenExecution {
    fn from(execution: &Execution) -> Self {
        Self {
            id: execution.id.clone(),
            workflow: execution.workflow.clone(),
            status: execution.status,
            created_at: execution.created_at,
            started_at: execution.started_at,
            confirmed_at: execution.confirmed_at,
            traceparent: execution.traceparent.clone(),
        }
    }
}

/// A change of an execution's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The new status.
    pub status: Status,
    /// What it gave, when completed.
    pub result: Option<Json>,
    /// Why it ended otherwise.
    pub error: Option<String>,
    /// When it was acknowledged, if the backend tells.
    pub started_at: Option<Timestamp>,
    /// When it ended, if it has.
    pub finished_at: Option<Timestamp>,
}

impl Outcome {
    /// An execution that the backend has acknowledged.
    #[must_use]
    pub fn running(started_at: Timestamp) -> Self {
        Self {
            status: Status::Running,
            result: None,
            error: None,
            started_at: Some(started_at),
            finished_at: None,
        }
    }

    /// An execution that ended without a result.
    #[must_use]
    pub fn ended(status: Status, error: impl Into<String>, finished_at: Timestamp) -> Self {
        Self {
            status,
            result: None,
            error: Some(error.into()),
            started_at: None,
            finished_at: Some(finished_at),
        }
    }
}

/// How a client wishes an execution to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It may clean up, and take its time.
    Cancel,
    /// By force.
    Terminate {
        /// For people who look at it later.
        reason: String,
    },
}

impl Ending {
    /// What an execution that never began has come to.
    #[must_use]
    pub fn before_start(&self, at: Timestamp) -> Outcome {
        match self {
            Self::Cancel => Outcome::ended(Status::Cancelled, "cancelled before it began", at),
            Self::Terminate { reason } => Outcome::ended(Status::Terminated, reason, at),
        }
    }
}

/// What a backend needs to start an execution.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The execution's id.
    pub id: String,
    /// Identifies the hand-over: repeating it with the same request id starts nothing twice.
    pub request_id: String,
    /// The workflow's name.
    pub workflow: String,
    /// What the workflow does.
    pub definition: Workflow,
    /// What it is given.
    pub input: Json,
    /// Time it may take in all.
    pub timeout: Option<Duration>,
    /// The trace that it belongs to, as W3C's `traceparent`.
    pub traceparent: Option<String>,
    /// How long ago a try was made that may have reached the backend.
    pub first_tried: Option<Duration>,
}

/// Which executions a list shows, newest first.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Only of this status.
    pub status: Option<Status>,
    /// Only of this workflow.
    pub workflow: Option<String>,
    /// Only older than this one.
    pub before: Option<ListPlace>,
    /// At most so many.
    pub limit: i64,
}

/// A place in the list of executions, what an opaque cursor stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace {
    /// When the last one shown was created.
    pub created_at: Timestamp,
    /// Its id, because two can be created at once.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_its_name() {
        for &status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }

    #[test]
    fn what_the_release_before_stored_has_the_default_bound() {
        let stored = r#"{"kind": "http", "url": "http://a/", "timeout": {"secs": 1, "nanos": 0},
            "retry": {"max_attempts": 1, "initial_backoff": {"secs": 1, "nanos": 0},
            "max_backoff": {"secs": 1, "nanos": 0}, "multiplier": 2.0}}"#;
        let read: Workflow = serde_json::from_str(stored).unwrap();
        assert!(
            matches!(read, Workflow::Http { max_answer: Workflow::MAX_ANSWER, .. }),
            "{read:?}"
        );
    }

    #[test]
    fn the_pause_between_tries_grows_up_to_its_bound() {
        let retry = StepRetry {
            max_attempts: 9,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            multiplier: 2.0,
        };
        let pauses: Vec<_> = (1..=5).map(|tries| retry.pause_after(tries).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000]);
        assert_eq!(retry.pause_after(u32::MAX), retry.max_backoff);
    }
}
