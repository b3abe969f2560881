//! Workflows and their executions.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};
use strum::VariantArray;

use super::{
    backoff::Backoff,
    json::Json,
    time::{self, Timestamp},
};

/// The status of an execution.
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
    /// Ended because its cancellation was requested.
    Cancelled,
    /// Ended by force.
    Terminated,
    /// Ended because its timeout elapsed.
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

    /// The type of the event that announces the status.
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

/// The definition of a workflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workflow {
    /// Returns its input.
    Echo {
        /// The time that it takes.
        delay: Duration,
    },
    /// Sends its input to a URL; the JSON answer is the result.
    Http {
        /// The URL.
        url: String,
        /// The timeout of one attempt.
        timeout: Duration,
        /// The retries of failed attempts.
        retry: StepRetry,
        /// The size limit of the answer, in bytes.
        // The previous release did not store one.
        #[serde(default = "Workflow::default_max_answer")]
        max_answer: usize,
    },
    /// Runs on workers elsewhere, in any language.
    Temporal {
        /// The workflow type that those workers register.
        workflow_type: String,
        /// The task queue they poll; the connection's own if unset.
        task_queue: Option<String>,
    },
}

impl Workflow {
    /// The default size limit of a service's answer, in bytes.
    pub const MAX_ANSWER: usize = 1 << 20;

    const fn default_max_answer() -> usize {
        Self::MAX_ANSWER
    }
}

/// The retries of a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRetry {
    /// The total number of attempts, including the first.
    pub max_attempts: u32,
    /// The pause before the second attempt.
    pub initial_backoff: Duration,
    /// The longest pause.
    pub max_backoff: Duration,
    /// The factor by which the pause grows with each attempt.
    pub multiplier: f64,
}

impl StepRetry {
    /// Returns the pause after `tries` failed attempts.
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
    /// The input of the workflow.
    pub input: Json,
    /// Its status.
    pub status: Status,
    /// Its result, when completed.
    pub result: Option<Json>,
    /// The reason for any other end.
    pub error: Option<String>,
    /// The time of its acceptance.
    pub created_at: Timestamp,
    /// The time at which the backend acknowledged it.
    pub started_at: Option<Timestamp>,
    /// The time of its end.
    pub finished_at: Option<Timestamp>,
    /// The time at which the backend last confirmed the status.
    pub confirmed_at: Option<Timestamp>,
    /// The backend that runs it, which never changes.
    pub backend: String,
    /// Identifies our start request to the backend, so that a repeated request starts nothing
    /// twice.
    pub request_id: String,
    /// The time limit of the whole execution.
    pub timeout: Option<Duration>,
    /// The definition of the workflow, as configured at its acceptance.
    pub definition: Workflow,
    /// The trace of the request that created it, as a W3C `traceparent`.
    pub traceparent: Option<String>,
    /// How often an operator had it started again after it was refused for good.
    pub redrives: i32,
}

impl Execution {
    /// Returns the record after a change.
    #[must_use]
    pub fn after(&self, outcome: &Outcome) -> Self {
        Self {
            status: outcome.status,
            result: outcome.result.clone(),
            error: outcome.error.clone(),
            // The start that was stored first is kept, because the clocks of backends differ from
            // ours.
            started_at: self.started_at.or(outcome.started_at),
            finished_at: outcome.finished_at,
            confirmed_at: Some(time::now()),
            ..self.clone()
        }
    }
}

/// The fields that are needed to follow an execution that has not ended. Fields that can be large
/// or might not be readable are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenExecution {
    /// Its id.
    pub id: String,
    /// The workflow's name.
    pub workflow: String,
    /// Its status.
    pub status: Status,
    /// The time of its acceptance.
    pub created_at: Timestamp,
    /// The time at which the backend acknowledged it.
    pub started_at: Option<Timestamp>,
    /// The time at which the backend last confirmed the status.
    pub confirmed_at: Option<Timestamp>,
    /// The trace of the request that created it, as a W3C `traceparent`.
    pub traceparent: Option<String>,
    /// How often an operator had it started again after it was refused for good.
    pub redrives: i32,
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
            redrives: execution.redrives,
        }
    }
}

/// A change of an execution's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The new status.
    pub status: Status,
    /// Its result, when completed.
    pub result: Option<Json>,
    /// The reason for any other end.
    pub error: Option<String>,
    /// The time of its acknowledgement, if the backend reports it.
    pub started_at: Option<Timestamp>,
    /// The time of its end, if it has ended.
    pub finished_at: Option<Timestamp>,
}

impl Outcome {
    /// The outcome of an execution that the backend has acknowledged.
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

    /// The outcome of an execution that ended without a result.
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

/// An ended execution as a list shows it, without its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedEnd {
    /// The execution's id.
    pub id: String,
    /// The run that ended it, where the backend has several for an execution.
    pub run: String,
    /// How it ended.
    pub status: Status,
    /// The start of that run.
    pub started_at: Option<Timestamp>,
    /// True unless that run continued another.
    pub is_first_run: bool,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// The way in which a client asks for the end of an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Lets it clean up, which may take time.
    Cancel,
    /// Ends it by force.
    Terminate {
        /// The reason, for people who look at it later.
        reason: String,
    },
}

impl Ending {
    /// The outcome of an execution that ends before it starts.
    #[must_use]
    pub fn before_start(&self, at: Timestamp) -> Outcome {
        match self {
            Self::Cancel => Outcome::ended(Status::Cancelled, "cancelled before it began", at),
            Self::Terminate { reason } => Outcome::ended(Status::Terminated, reason, at),
        }
    }
}

/// The data that a backend needs to start an execution.
#[derive(Clone, Debug)]
pub struct StartRequest {
    /// The execution's id.
    pub id: String,
    /// Identifies the request: repeating it with the same request id starts nothing twice.
    pub request_id: String,
    /// The workflow's name.
    pub workflow: String,
    /// The definition of the workflow.
    pub definition: Workflow,
    /// The input of the workflow.
    pub input: Json,
    /// The time limit of the whole execution.
    pub timeout: Option<Duration>,
    /// The trace that it belongs to, as a W3C `traceparent`.
    pub traceparent: Option<String>,
    /// The time since the first attempt that may have reached the backend.
    pub first_tried: Option<Duration>,
}

/// The selection of executions in a list, newest first.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// The status to select, if any.
    pub status: Option<Status>,
    /// The workflow to select, if any.
    pub workflow: Option<String>,
    /// The place after which the list continues with older executions, if any.
    pub before: Option<ListPlace>,
    /// The maximum number of executions.
    pub limit: i64,
}

/// A place in the list of executions, which clients see as an opaque cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace {
    /// The creation time of the last execution shown.
    pub created_at: Timestamp,
    /// Its id, because two executions can have the same creation time.
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
