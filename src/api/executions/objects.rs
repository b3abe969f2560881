//! The objects of requests and answers about executions.

use poem_openapi::{Enum, Object};
use serde::{Deserialize, Serialize};

use super::super::{
    raw::{AnyJson, Raw},
    types::DateTime,
};
use crate::model::executions as model;

/// The status of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, Serialize, Deserialize)]
#[oai(rename = "ExecutionStatus", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Status {
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

impl From<model::Status> for Status {
    fn from(status: model::Status) -> Self {
        match status {
            model::Status::Accepted => Self::Accepted,
            model::Status::Running => Self::Running,
            model::Status::Completed => Self::Completed,
            model::Status::Failed => Self::Failed,
            model::Status::Cancelled => Self::Cancelled,
            model::Status::Terminated => Self::Terminated,
            model::Status::TimedOut => Self::TimedOut,
        }
    }
}

impl From<Status> for model::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Accepted => Self::Accepted,
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Terminated => Self::Terminated,
            Status::TimedOut => Self::TimedOut,
        }
    }
}

/// A run of a workflow.
#[derive(Clone, Debug, Object, Serialize, Deserialize)]
pub(in super::super) struct Execution {
    /// Its id.
    pub(super) id: String,
    /// The workflow's name.
    pub(super) workflow: String,
    /// The status.
    pub(super) status: Status,
    /// The input.
    pub(super) input: AnyJson,
    /// The result, once it has completed.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<AnyJson>,
    /// The reason, if it did not complete.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// True if the backend has not confirmed the status recently.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stale: Option<bool>,
    /// When the work was accepted.
    pub(super) created_at: DateTime,
    /// When the backend acknowledged the start.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<DateTime>,
    /// When it ended.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) finished_at: Option<DateTime>,
}

impl Execution {
    pub(in super::super) fn new(execution: &model::Execution, stale: bool) -> Self {
        Self {
            id: execution.id.clone(),
            workflow: execution.workflow.clone(),
            status: execution.status.into(),
            input: Raw::new(execution.input.clone()),
            result: execution.result.clone().map(Raw::new),
            error: execution.error.clone(),
            stale: stale.then_some(true),
            created_at: DateTime(execution.created_at),
            started_at: execution.started_at.map(DateTime),
            finished_at: execution.finished_at.map(DateTime),
        }
    }
}

/// Executions, newest first.
#[derive(Debug, Object, Serialize)]
pub(in super::super) struct ExecutionList {
    /// This page.
    pub(super) items: Vec<Execution>,
    /// The `cursor` of the next page; absent on the last page.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next_cursor: Option<String>,
}

/// The execution to start.
#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(deny_unknown_fields)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct StartExecution {
    /// The name of a configured workflow.
    pub(super) workflow: String,
    /// The input: any JSON value.
    pub(super) input: Option<AnyJson>,
    /// The id, if the client chooses it. Otherwise the service generates one.
    pub(super) id: Option<String>,
    /// The total time limit, such as `30s`.
    pub(super) timeout: Option<String>,
}

/// The reason for terminating an execution.
#[derive(Debug, Default, Object, Deserialize)]
#[oai(deny_unknown_fields)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Terminate {
    /// The reason, shown with the execution.
    pub(super) reason: Option<String>,
}

/// The answer to a query.
#[derive(Debug, Object, Serialize)]
pub(in super::super) struct QueryAnswer {
    /// The answer of the workflow.
    pub(super) result: AnyJson,
}
