//! Rows of embedded runs.

use diesel::prelude::*;

use super::{
    super::{ClaimedRun, Run, schema},
    from_micros_span, json, micros, note_error, parse, status, value,
};
use crate::{
    error::Error,
    model::{
        executions::{ListedEnd, Outcome, StartRequest, Status},
        time::from_micros,
    },
};

#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::runs)]
pub(in super::super) struct RunRow {
    pub(in super::super) id: String,
    pub(in super::super) request_id: String,
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
    pub(in super::super) fence: i64,
    cancel_requested: bool,
    traceparent: Option<String>,
}

impl RunRow {
    pub(in super::super) fn new(request: &StartRequest, now: i64) -> Result<Self, Error> {
        Ok(Self {
            id: request.id.clone(),
            request_id: request.request_id.clone(),
            definition: json(&request.definition)?,
            input: request.input.text().to_owned(),
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

    /// A run whose outcome cannot be read counts as failed, because its result is lost.
    pub(in super::super) fn read(self) -> Run {
        let mut unreadable = None;
        let status = note_error(status(&self.status), &mut unreadable);
        let result = self.result.map(|result| note_error(value(result), &mut unreadable));
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

    pub(in super::super) fn claimed(self, now: i64) -> Result<ClaimedRun, Error> {
        Ok(ClaimedRun {
            id: self.id,
            definition: parse(&self.definition)?,
            input: value(self.input)?,
            tries: u32::try_from(self.tries).unwrap_or(0),
            fence: self.fence,
            time_left: self.deadline_at.map(|at| from_micros_span(at - now)),
            pause: from_micros_span(self.next_try_at - now),
            cancel_requested: self.cancel_requested,
            traceparent: self.traceparent,
        })
    }
}

/// A run that ended, without its result.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = schema::runs)]
pub(in super::super) struct EndedRow {
    id: String,
    request_id: String,
    status: String,
    created_at: i64,
    finished_at: Option<i64>,
}

impl EndedRow {
    /// A run whose status cannot be read counts as failed, as its outcome does.
    pub(in super::super) fn read(self) -> ListedEnd {
        let started_at = from_micros(self.created_at);
        ListedEnd {
            id: self.id,
            run: self.request_id,
            status: status(&self.status).unwrap_or(Status::Failed),
            started_at: Some(started_at),
            is_first_run: true,
            ended_at: self.finished_at.map_or(started_at, from_micros),
        }
    }
}
