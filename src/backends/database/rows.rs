//! Rows of the tables, and what they mean.

use std::time::Duration;

use diesel::prelude::*;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Claim, ClaimedExecution, ClaimedRun, DeadLetter, KeyUse, NewEvent, PendingEvent,
    RejectedExecution, Run, UnreadableEvent, UnreadableExecution, schema,
};
use crate::{
    error::{Error, ErrorKind},
    model::{
        executions::{Execution, OpenExecution, Outcome, StartRequest, Status, Workflow},
        time::from_micros,
    },
};

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::executions)]
pub(super) struct ExecutionRow {
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
}

/// What of an execution is read to follow it.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = schema::executions)]
pub(super) struct OpenRow {
    id: String,
    workflow: String,
    status: String,
    created_at: i64,
    started_at: Option<i64>,
    confirmed_at: Option<i64>,
    traceparent: Option<String>,
}

impl OpenRow {
    /// Only of a row that is `accepted` or `running`.
    pub(super) fn read(self) -> OpenExecution {
        let accepted = self.status == Status::Accepted.as_str();
        OpenExecution {
            id: self.id,
            workflow: self.workflow,
            status: if accepted { Status::Accepted } else { Status::Running },
            created_at: from_micros(self.created_at),
            started_at: self.started_at.map(from_micros),
            confirmed_at: self.confirmed_at.map(from_micros),
            traceparent: self.traceparent,
        }
    }
}

/// What was decided about an execution beside its status.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::executions)]
pub(super) struct WishRow {
    ending: Option<String>,
    rejected_at: Option<i64>,
}

impl ExecutionRow {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    pub(super) fn new(execution: &Execution) -> Result<Self, Error> {
        Ok(Self {
            id: execution.id.clone(),
            workflow: execution.workflow.clone(),
            input: json(&execution.input)?,
            status: execution.status.as_str().to_owned(),
            result: execution.result.as_ref().map(json).transpose()?,
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
        })
    }

    /// For people and clients, who are shown what can be read.
    pub(super) fn show(self) -> Execution {
        let (mut execution, unreadable) = self.read_what_can_be();
        if let Some(unreadable) = unreadable {
            let error = execution.error.map(|error| format!("{error}; ")).unwrap_or_default();
            execution.error = Some(format!("{error}{unreadable}"));
        }
        execution
    }

    /// The record, and why a part of it cannot be read, if one cannot: it is `null` then.
    fn read_what_can_be(self) -> (Execution, Option<Error>) {
        let mut unreadable = None;
        let input = note_error(parse(&self.input), &mut unreadable);
        let status = note_error(status(&self.status), &mut unreadable);
        let result = self.result.map(|result| note_error(parse(&result), &mut unreadable));
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
        };
        (execution, unreadable)
    }
}

fn note_error<T>(read: Result<T, Error>, unreadable: &mut Option<Error>) -> Option<T> {
    read.map_err(|error| unreadable.get_or_insert(error).clone()).ok()
}

/// How the hand-over of an execution stands.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::executions, treat_none_as_default_value = false)]
pub(super) struct HandOverRow {
    owner: Option<String>,
    claimed_until: i64,
    fence: i64,
    tried_at: Option<i64>,
    refusals: i32,
}

impl HandOverRow {
    /// Of an execution that is accepted at `now`.
    pub(super) fn new(claim: Option<&Claim>, now: i64) -> Self {
        Self {
            owner: claim.map(|claim| claim.owner.clone()),
            claimed_until: claim.map_or(0, |claim| now.saturating_add(micros(claim.lease))),
            fence: claim.map_or(0, |_| Claim::FIRST_FENCE),
            tried_at: claim.map(|_| now),
            refusals: 0,
        }
    }

    /// The claim that was made at `now`.
    pub(super) fn claimed(
        self,
        execution: ExecutionRow,
        now: i64,
    ) -> Result<ClaimedExecution, Box<UnreadableExecution>> {
        // The claim itself counts as a try. What another version accepted may have been tried as
        // soon as it was there.
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

    pub(super) fn rejected(self, execution: ExecutionRow) -> RejectedExecution {
        RejectedExecution { execution: execution.show(), refusals: self.refusals }
    }
}

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::idempotency_keys)]
pub(super) struct KeyRow {
    scope: String,
    idempotency_key: String,
    pub(super) body_hash: String,
    execution_id: String,
    pub(super) answer: Option<String>,
    busy_until: i64,
    expires_at: i64,
}

impl KeyRow {
    pub(super) fn primary_key(&self) -> (&str, &str) {
        (&self.scope, &self.idempotency_key)
    }

    pub(super) fn new(key: &KeyUse, now: i64) -> Self {
        Self {
            scope: key.scope.clone(),
            idempotency_key: key.key.clone(),
            body_hash: key.body_hash.clone(),
            // What the program before this one needs beside the answer.
            execution_id: String::new(),
            answer: Some(key.answer.clone()),
            busy_until: 0,
            expires_at: now.saturating_add(micros(key.keep_for)),
        }
    }
}

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::runs)]
pub(super) struct RunRow {
    pub(super) id: String,
    pub(super) request_id: String,
    definition: String,
    input: String,
    status: String,
    result: Option<String>,
    error: Option<String>,
    created_at: i64,
    deadline_at: Option<i64>,
    finished_at: Option<i64>,
    tries: i32,
    next_try_at: i64,
    owner: Option<String>,
    claimed_until: i64,
    pub(super) fence: i64,
    cancel_requested: bool,
    traceparent: Option<String>,
}

impl RunRow {
    pub(super) fn new(request: &StartRequest, now: i64) -> Result<Self, Error> {
        Ok(Self {
            id: request.id.clone(),
            request_id: request.request_id.clone(),
            definition: json(&request.definition)?,
            input: json(&request.input)?,
            status: Status::Running.as_str().to_owned(),
            result: None,
            error: None,
            created_at: now,
            deadline_at: request.timeout.map(|timeout| now.saturating_add(micros(timeout))),
            finished_at: None,
            tries: 0,
            next_try_at: now,
            owner: None,
            claimed_until: 0,
            fence: 0,
            cancel_requested: false,
            traceparent: request.traceparent.clone(),
        })
    }

    /// A run whose end cannot be read has failed, for all that anybody will ever know of it.
    pub(super) fn read(self) -> Run {
        let mut unreadable = None;
        let status = note_error(status(&self.status), &mut unreadable);
        let result = self.result.map(|result| note_error(parse(&result), &mut unreadable));
        let outcome = Outcome {
            status: status.unwrap_or(Status::Failed),
            result: result.flatten(),
            error: self.error,
            started_at: Some(from_micros(self.created_at)),
            finished_at: self.finished_at.map(from_micros),
        };
        let outcome = match unreadable {
            None => outcome,
            Some(error) => {
                let error = Some(error.to_string());
                Outcome { status: Status::Failed, result: None, error, ..outcome }
            }
        };
        Run { id: self.id, request_id: self.request_id, outcome }
    }

    pub(super) fn claimed(self, now: i64) -> Result<ClaimedRun, Error> {
        Ok(ClaimedRun {
            id: self.id,
            definition: parse(&self.definition)?,
            input: parse(&self.input)?,
            tries: u32::try_from(self.tries).unwrap_or(0),
            fence: self.fence,
            time_left: self.deadline_at.map(|at| from_micros_span(at - now)),
            pause: from_micros_span(self.next_try_at - now),
            cancel_requested: self.cancel_requested,
            traceparent: self.traceparent,
        })
    }
}

pub(super) const PENDING: &str = "pending";
pub(super) const DELIVERED: &str = "delivered";
pub(super) const DEAD: &str = "dead";

/// An event of the outbox, with every column but its number, which the database gives.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::outbox)]
pub(super) struct OutboxRow {
    lane: i32,
    pub(super) source: String,
    pub(super) event_id: String,
    pub(super) content_hash: String,
    event: String,
    state: String,
    created_at: i64,
    delivered_at: Option<i64>,
    refusals: i32,
    error: Option<String>,
    position: Option<String>,
}

impl OutboxRow {
    pub(super) fn new(new: &NewEvent, created_at: i64) -> Self {
        Self {
            lane: new.event.lane(),
            source: new.event.source.clone(),
            event_id: new.event.id.clone(),
            content_hash: new.content_hash.clone(),
            event: new.event.to_json(),
            state: PENDING.to_owned(),
            created_at,
            delivered_at: None,
            refusals: 0,
            error: None,
            position: None,
        }
    }
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = schema::outbox)]
pub(super) struct DeadRow {
    seq: i64,
    event: String,
    error: Option<String>,
    refusals: i32,
    created_at: i64,
}

impl DeadRow {
    pub(super) fn read(self) -> DeadLetter {
        DeadLetter {
            seq: self.seq,
            event: parse(&self.event).ok(),
            error: self.error.unwrap_or_default(),
            refusals: self.refusals,
            accepted_at: from_micros(self.created_at),
        }
    }
}

/// An event that waits to be handed over.
#[derive(Debug, QueryableByName)]
#[diesel(table_name = schema::outbox)]
pub(super) struct PendingRow {
    seq: i64,
    lane: i32,
    event: String,
}

impl PendingRow {
    pub(super) fn read(self) -> Result<PendingEvent, UnreadableEvent> {
        let Self { seq, lane, event } = self;
        match parse(&event) {
            Ok(event) => Ok(PendingEvent { seq, lane, event }),
            Err(error) => Err(UnreadableEvent { seq, lane, reason: error.to_string() }),
        }
    }
}

/// A duration in the unit of the tables.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn from_micros_span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A value as the tables keep it.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Internal, "not JSON").with_source(error))
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Incompatible, "a stored value cannot be read").with_source(error)
    })
}

fn status(text: &str) -> Result<Status, Error> {
    text.parse().map_err(|message: String| Error::new(ErrorKind::Incompatible, message))
}
