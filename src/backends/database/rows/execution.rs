//! Rows of executions.

use std::time::Duration;

use diesel::prelude::*;

use super::{
    super::{Claim, ClaimedExecution, RejectedExecution, UnreadableExecution, schema},
    from_micros_span, from_millis, json, micros, millis, note_error, parse, status, value,
    without_nul,
};
use crate::{
    error::Error,
    model::{
        executions::{Execution, OpenExecution, Outcome, Status, Workflow},
        time::from_micros,
    },
};

#[derive(Clone, Debug, Queryable, QueryableByName, Selectable, Insertable)]
#[diesel(table_name = schema::executions)]
pub(in super::super) struct ExecutionRow {
    id: String,
    workflow: String,
    input: String,
    status: String,
    result: Option<String>,
    error: Option<String>,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    confirmed_at: Option<i64>,
    backend: String,
    request_id: String,
    timeout_ms: Option<i64>,
    definition: String,
    traceparent: Option<String>,
    redrives: i32,
}

/// The columns of an execution that following it needs.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = schema::executions)]
pub(in super::super) struct OpenRow {
    id: String,
    workflow: String,
    status: String,
    created_at: i64,
    started_at: Option<i64>,
    confirmed_at: Option<i64>,
    traceparent: Option<String>,
    redrives: i32,
}

impl OpenRow {
    /// Only for a row that is `accepted` or `running`.
    pub(in super::super) fn read(self) -> OpenExecution {
        let accepted = self.status == Status::Accepted.as_str();
        OpenExecution {
            id: self.id,
            workflow: self.workflow,
            status: if accepted { Status::Accepted } else { Status::Running },
            created_at: from_micros(self.created_at),
            started_at: self.started_at.map(from_micros),
            confirmed_at: self.confirmed_at.map(from_micros),
            traceparent: self.traceparent,
            redrives: self.redrives,
        }
    }
}

/// The settings of an execution beside its status.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::executions)]
pub(in super::super) struct WishRow {
    ending: Option<String>,
    rejected_at: Option<i64>,
}

impl ExecutionRow {
    pub(in super::super) fn id(&self) -> &str {
        &self.id
    }

    pub(in super::super) fn created_at(&self) -> i64 {
        self.created_at
    }

    pub(in super::super) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(in super::super) fn new(execution: &Execution) -> Result<Self, Error> {
        Ok(Self {
            id: execution.id.clone(),
            workflow: execution.workflow.clone(),
            input: execution.input.text().to_owned(),
            status: execution.status.as_str().to_owned(),
            result: execution.result.as_ref().map(|result| result.text().to_owned()),
            error: execution.error.clone(),
            created_at: execution.created_at.as_microsecond(),
            started_at: execution.started_at.map(jiff::Timestamp::as_microsecond),
            finished_at: execution.finished_at.map(jiff::Timestamp::as_microsecond),
            confirmed_at: execution.confirmed_at.map(jiff::Timestamp::as_microsecond),
            backend: execution.backend.clone(),
            request_id: execution.request_id.clone(),
            timeout_ms: execution.timeout.map(millis),
            definition: json(&execution.definition)?,
            traceparent: execution.traceparent.clone(),
            redrives: execution.redrives,
        })
    }

    /// For people and clients, who see the readable parts.
    pub(in super::super) fn show(self) -> Execution {
        let (mut execution, unreadable) = self.read_what_can_be();
        if let Some(unreadable) = unreadable {
            let error = execution.error.map(|error| format!("{error}; ")).unwrap_or_default();
            execution.error = Some(format!("{error}{unreadable}"));
        }
        execution
    }

    /// The record, and the reason if a part of it cannot be read and is `null`.
    fn read_what_can_be(self) -> (Execution, Option<Error>) {
        let mut unreadable = None;
        let input = note_error(value(self.input), &mut unreadable);
        let status = note_error(status(&self.status), &mut unreadable);
        let result = self.result.map(|result| note_error(value(result), &mut unreadable));
        let definition = note_error(parse(&self.definition), &mut unreadable);
        let execution = Execution {
            id: self.id,
            workflow: self.workflow,
            input: input.unwrap_or_default(),
            status: status.unwrap_or(Status::Failed),
            result: result.flatten(),
            error: self.error,
            created_at: from_micros(self.created_at),
            started_at: self.started_at.map(from_micros),
            finished_at: self.finished_at.map(from_micros),
            confirmed_at: self.confirmed_at.map(from_micros),
            backend: self.backend,
            request_id: self.request_id,
            timeout: self.timeout_ms.map(from_millis),
            definition: definition.unwrap_or(Workflow::Echo { delay: Duration::ZERO }),
            traceparent: self.traceparent,
            redrives: self.redrives,
        };
        (execution, unreadable)
    }
}

/// The columns that a change of status sets.
#[derive(Clone, Debug, AsChangeset)]
#[diesel(table_name = schema::executions, treat_none_as_null = true)]
pub(in super::super) struct OutcomeRow {
    status: &'static str,
    result: Option<String>,
    error: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    confirmed_at: i64,
}

impl OutcomeRow {
    pub(in super::super) fn new(outcome: &Outcome, now: i64) -> Self {
        Self {
            status: outcome.status.as_str(),
            result: outcome.result.as_ref().map(|result| result.text().to_owned()),
            error: outcome.error.as_deref().map(without_nul),
            started_at: outcome.started_at.map(jiff::Timestamp::as_microsecond),
            finished_at: outcome.finished_at.map(jiff::Timestamp::as_microsecond),
            confirmed_at: now,
        }
    }

    /// The same for an execution of which a start is stored: that one stands, and no end comes
    /// before it.
    pub(in super::super) fn started(mut self, stored: Option<i64>) -> Self {
        self.started_at = stored.or(self.started_at);
        self.finished_at =
            self.finished_at.map(|end| self.started_at.map_or(end, |at| end.max(at)));
        self
    }
}

/// The claim state of an accepted execution.
#[derive(Clone, Debug, Queryable, QueryableByName, Selectable, Insertable)]
#[diesel(table_name = schema::executions, treat_none_as_default_value = false)]
pub(in super::super) struct HandOverRow {
    owner: Option<String>,
    claimed_until: i64,
    fence: i64,
    tried_at: Option<i64>,
    refusals: i32,
}

impl HandOverRow {
    /// The state of an execution accepted at `now`.
    pub(in super::super) fn new(claim: Option<&Claim>, now: i64) -> Self {
        Self {
            owner: claim.map(|claim| claim.owner.clone()),
            claimed_until: claim.map_or(0, |claim| now.saturating_add(micros(claim.lease))),
            fence: claim.map_or(0, |_| Claim::FIRST_FENCE),
            tried_at: claim.map(|_| now),
            refusals: 0,
        }
    }

    /// The claim that was just made for `lease`.
    pub(in super::super) fn claimed(
        self,
        execution: ExecutionRow,
        lease: i64,
    ) -> Result<ClaimedExecution, Box<UnreadableExecution>> {
        let now = self.claimed_until - lease;
        // The claim itself counts as an attempt. Another version may have tried an execution as
        // soon as it accepted it.
        let earlier = self.tried_at.filter(|at| *at != now);
        let first_tried = earlier.map(|at| from_micros_span(now - at.max(execution.created_at)));
        let fence = self.fence;
        match execution.read_what_can_be() {
            (execution, None) => Ok(ClaimedExecution { execution, fence, first_tried }),
            (execution, Some(error)) => {
                let reason = error.to_string();
                let execution = (&execution).into();
                Err(Box::new(UnreadableExecution { execution, fence, reason }))
            }
        }
    }

    pub(in super::super) fn rejected(self, execution: ExecutionRow) -> RejectedExecution {
        RejectedExecution { execution: execution.show(), refusals: self.refusals }
    }
}
