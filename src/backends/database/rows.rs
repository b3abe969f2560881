//! Rows of the tables, and their conversion to model types.

mod event;
mod execution;
mod key;
mod run;

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

pub(super) use self::{
    event::{DEAD, DELIVERED, DeadRow, OutboxRow, PENDING, PendingRow},
    execution::{ExecutionRow, HandOverRow, OpenRow, OutcomeRow, WishRow},
    key::KeyRow,
    run::{EndedRow, RunRow},
};
use crate::{
    error::{Error, ErrorKind},
    model::{executions::Status, json::Json},
};

fn note_error<T>(read: Result<T, Error>, unreadable: &mut Option<Error>) -> Option<T> {
    read.map_err(|error| unreadable.get_or_insert(error).clone()).ok()
}

/// Removes NUL, which `PostgreSQL` cannot store in text and which answers of other services may
/// contain.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

/// A duration in the unit of the tables.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn from_micros_span(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A value in the form stored in the tables.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, Error> {
    serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Internal, "not JSON").with_source(error))
}

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(unreadable)
}

/// A client's value, which is kept as text.
fn value(text: String) -> Result<Json, Error> {
    Json::stored(text).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Incompatible, "a stored value cannot be read").with_source(error)
}

fn status(text: &str) -> Result<Status, Error> {
    text.parse().map_err(|message: String| Error::new(ErrorKind::Incompatible, message))
}
