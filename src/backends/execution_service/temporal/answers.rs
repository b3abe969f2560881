//! Translates answers of a Temporal server: errors, payloads, outcomes.

use std::{error::Error as StdError, io};

use serde::Serialize;
use temporalio_client::{
    errors::ClientConnectError,
    tonic::{Code, Response, Status as Answer},
};
use temporalio_common::protos::{
    coresdk::AsJsonPayloadExt,
    temporal::api::{
        common::v1::{Payload, Payloads},
        errordetails::v1::WorkflowExecutionAlreadyStartedFailure,
        failure::v1::{Failure, failure::FailureInfo},
        history::v1::history_event::Attributes,
    },
    utilities::decode_status_detail,
};

use crate::{
    error::{Error, ErrorKind, RetryClass},
    model::{
        json::Json,
        time::{self, Timestamp},
    },
};

/// The longest error text of an execution, in characters; failures can carry whole documents.
const MAX_ERROR: usize = 2000;

/// The text of an answer; the driver's own form adds raw bytes and headers.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}: {1}")]
struct AnswerText(Code, String);

/// The message of an answer.
pub(super) fn body<T>(answer: Result<Response<T>, Answer>) -> Result<T, Error> {
    answer.map(Response::into_inner).map_err(|answer| translate(&answer))
}

/// An error of an RPC, by its gRPC code.
pub(super) fn translate(answer: &Answer) -> Error {
    use ErrorKind as Kind;
    let detail = |name: &str| String::from_utf8_lossy(answer.details()).contains(name);
    let (kind, message) = match answer.code() {
        // Told apart, because an execution that is not found counts as lost.
        Code::NotFound if detail(".NamespaceNotFoundFailure") => {
            (Kind::Missing, "the namespace does not exist")
        }
        Code::NotFound => (Kind::NotFound, "Temporal does not know it, or it has ended"),
        Code::AlreadyExists => (Kind::AlreadyExists, "the id is taken"),
        // gRPC's limit of one message has the same code as throttling.
        Code::ResourceExhausted if answer.message().contains("message larger than max") => {
            (Kind::InvalidInput, "the input is too large for Temporal")
        }
        Code::InvalidArgument | Code::OutOfRange => {
            (Kind::InvalidInput, "Temporal refuses the input")
        }
        // A proxy answered instead, without gRPC.
        Code::Unimplemented if answer.message().starts_with("grpc-status header missing") => {
            return unavailable(answer);
        }
        Code::Unimplemented => (Kind::Unsupported, "Temporal does not support this"),
        Code::ResourceExhausted => (Kind::Throttled, "Temporal asks for fewer calls"),
        Code::Unauthenticated => (Kind::Unauthenticated, "Temporal refuses our credentials"),
        Code::PermissionDenied => (Kind::Forbidden, "Temporal forbids this"),
        Code::FailedPrecondition if detail(".WorkflowNotReadyFailure") => {
            (Kind::InvalidInput, "the execution is in no state to answer")
        }
        Code::DeadlineExceeded => (Kind::Timeout, "no answer in time"),
        // Our own deadline, as tonic reports it.
        Code::Cancelled if answer.message() == "Timeout expired" => {
            (Kind::Timeout, "no answer in time")
        }
        _ => return transport_error(answer).unwrap_or_else(|| unavailable(answer)),
    };
    Error::new(kind, message).with_source(text(answer))
}

/// The error for a failed connect.
pub(super) fn connect_error(error: &ClientConnectError) -> Error {
    match error {
        ClientConnectError::SystemInfoCallError(answer) if answer.code() == Code::Unimplemented => {
            Error::new(ErrorKind::Incompatible, "the address is not that of a Temporal server")
                .with_source(text(answer))
        }
        ClientConnectError::SystemInfoCallError(answer) => translate(answer),
        ClientConnectError::TonicTransportError(error) => {
            transport_error(error).unwrap_or_else(|| {
                let message = format!("no connection to Temporal: {error:?}");
                Error::new(ErrorKind::Unavailable, message)
            })
        }
        // The other messages are about our own settings.
        other => Error::new(ErrorKind::Internal, other.to_string()),
    }
}

fn text(answer: &Answer) -> AnswerText {
    AnswerText(answer.code(), answer.message().to_owned())
}

fn unavailable(answer: &Answer) -> Error {
    Error::new(ErrorKind::Unavailable, "Temporal cannot serve the call")
        .with_retry(RetryClass::MaybeSent)
        .with_source(text(answer))
}

/// The network error, if the chain of causes contains one.
fn transport_error(error: &(dyn StdError + 'static)) -> Option<Error> {
    let mut kind = None;
    let mut connecting = false;
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        connecting |= is_of_connecting(cause, &text);
        // The innermost cause with a known kind decides.
        kind = kind_of(cause, &text).or(kind);
        if !cause.is::<Answer>() && texts.last() != Some(&text) {
            texts.push(text);
        }
        next = cause.source();
    }
    let kind = kind?;
    let message = format!("no connection to Temporal: {}", texts.join(": "));
    let retry = if connecting { RetryClass::NotSent } else { RetryClass::MaybeSent };
    Some(Error::new(kind, message).with_retry(retry))
}

/// True when the failure came before anything could be sent.
fn is_of_connecting(cause: &(dyn StdError + 'static), text: &str) -> bool {
    // Errors of a TLS handshake; after the handshake, the HTTP layer turns them into text.
    let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(<dyn StdError + Send + Sync>::is::<rustls::Error>)
        || matches!(text, "tcp connect error" | "dns error" | "HTTP/2 was not negotiated.")
        || text.starts_with("Error parsing TLS")
}

fn kind_of(cause: &(dyn StdError + 'static), text: &str) -> Option<ErrorKind> {
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return match error.kind() {
            io::ErrorKind::ConnectionRefused => Some(ErrorKind::Refused),
            io::ErrorKind::TimedOut => Some(ErrorKind::Timeout),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Some(ErrorKind::Disconnected),
            io::ErrorKind::InvalidData => Some(ErrorKind::Tls),
            _ => None,
        };
    }
    // Private error types of other crates are recognised by their texts.
    match text {
        "dns error" => Some(ErrorKind::NameNotFound),
        "HTTP/2 was not negotiated." => Some(ErrorKind::Tls),
        "connection error" | "operation was canceled" => Some(ErrorKind::Disconnected),
        _ if text.starts_with("h2 protocol error") => Some(ErrorKind::Disconnected),
        _ if text.starts_with("Error parsing TLS") => Some(ErrorKind::Tls),
        _ => None,
    }
}

/// The request id of the run that holds the id, from the answer that refuses a start.
pub(super) fn start_request_id(answer: &Answer) -> Option<String> {
    let failure: WorkflowExecutionAlreadyStartedFailure = decode_status_detail(answer.details())?;
    Some(failure.start_request_id)
}

/// A value as the JSON payload that every SDK reads.
pub(super) fn to_payload(value: &impl Serialize) -> Result<Payload, Error> {
    value.as_json_payload().map_err(|error| {
        let cause = io::Error::other(error);
        Error::new(ErrorKind::Internal, "a value has no JSON form").with_source(cause)
    })
}

/// Arguments of a signal or a query: none for `null`.
pub(super) fn to_arguments(value: &Json) -> Result<Option<Payloads>, Error> {
    if value.is_null() {
        return Ok(None);
    }
    Ok(Some(Payloads { payloads: vec![to_payload(value)?] }))
}

/// The first value that a workflow returned; `null` if it returned none.
pub(super) fn from_payloads(payloads: Option<Payloads>) -> Result<Json, String> {
    let Some(payload) = payloads.and_then(|payloads| payloads.payloads.into_iter().next()) else {
        return Ok(Json::null());
    };
    let encoding = payload.metadata.get("encoding").map(|name| String::from_utf8_lossy(name));
    match encoding.as_deref() {
        Some("binary/null") => Ok(Json::null()),
        // A value nested deeper than clients may send could not be passed on.
        Some("json/plain" | "json/protobuf") | None => {
            Json::read(&payload.data).map_err(|problem| format!("the value {problem}"))
        }
        Some(other) => Err(format!("the value has the encoding {other:?}, which is not JSON")),
    }
}

/// Result and error of an execution, from the event that closed it.
pub(super) fn ending(closed_by: Option<Attributes>) -> (Option<Json>, Option<String>) {
    use Attributes as Event;
    let error = match closed_by {
        Some(Event::WorkflowExecutionCompletedEventAttributes(event)) => {
            return match from_payloads(event.result) {
                Ok(value) => (Some(value), None),
                Err(message) => (None, Some(message)),
            };
        }
        Some(Event::WorkflowExecutionFailedEventAttributes(event)) => {
            event.failure.as_ref().map_or_else(String::new, failure_text)
        }
        Some(Event::WorkflowExecutionTerminatedEventAttributes(event)) => event.reason,
        Some(Event::WorkflowExecutionCanceledEventAttributes(_)) => {
            "cancelled on request".to_owned()
        }
        Some(Event::WorkflowExecutionTimedOutEventAttributes(_)) => {
            "the timeout elapsed".to_owned()
        }
        _ => String::new(),
    };
    let error = if error.is_empty() { "Temporal gives no reason".to_owned() } else { error };
    (None, Some(error.chars().take(MAX_ERROR).collect()))
}

/// The messages of a failure and its causes. A message that only says that a part of the workflow
/// failed is left out if its cause says more.
fn failure_text(failure: &Failure) -> String {
    let wraps = matches!(
        failure.failure_info,
        Some(
            FailureInfo::ActivityFailureInfo(_)
                | FailureInfo::ChildWorkflowExecutionFailureInfo(_)
                | FailureInfo::NexusOperationExecutionFailureInfo(_)
        )
    );
    let cause = failure.cause.as_deref().map(failure_text).unwrap_or_default();
    if cause.is_empty() || failure.message.contains(&cause) {
        return failure.message.clone();
    }
    if wraps || failure.message.is_empty() || cause.contains(&failure.message) {
        return cause;
    }
    format!("{}: {cause}", failure.message)
}

/// Converts a timestamp of the server.
pub(super) fn timestamp(seconds: i64, nanos: i32) -> Timestamp {
    time::from_micros(seconds.saturating_mul(1_000_000).saturating_add(i64::from(nanos / 1000)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use temporalio_common::protos::temporal::api::failure::v1::{
        ActivityFailureInfo, ApplicationFailureInfo,
    };

    use super::*;

    fn kind(code: Code, message: &str) -> ErrorKind {
        translate(&Answer::new(code, message)).kind()
    }

    #[test]
    fn every_code_has_its_kind() {
        for (code, expected) in [
            (Code::NotFound, ErrorKind::NotFound),
            (Code::AlreadyExists, ErrorKind::AlreadyExists),
            (Code::InvalidArgument, ErrorKind::InvalidInput),
            (Code::Unimplemented, ErrorKind::Unsupported),
            (Code::ResourceExhausted, ErrorKind::Throttled),
            (Code::Unauthenticated, ErrorKind::Unauthenticated),
            (Code::PermissionDenied, ErrorKind::Forbidden),
            (Code::DeadlineExceeded, ErrorKind::Timeout),
            (Code::FailedPrecondition, ErrorKind::Unavailable),
            (Code::Unavailable, ErrorKind::Unavailable),
            (Code::Internal, ErrorKind::Unavailable),
            (Code::Unknown, ErrorKind::Unavailable),
        ] {
            assert_eq!(kind(code, "reason"), expected, "{code:?}");
        }
        assert_eq!(kind(Code::Cancelled, "Timeout expired"), ErrorKind::Timeout);
        let proxy = "grpc-status header missing, mapped from HTTP status code 404";
        assert_eq!(kind(Code::Unimplemented, proxy), ErrorKind::Unavailable);
    }

    #[test]
    fn an_answer_that_may_follow_an_effect_says_so() {
        assert!(translate(&Answer::unavailable("shard is moving")).outcome_unknown());
        assert!(translate(&Answer::cancelled("Timeout expired")).outcome_unknown());
        assert!(!translate(&Answer::resource_exhausted("too many")).outcome_unknown());
    }

    #[test]
    fn the_server_s_words_are_not_in_the_message() {
        let error = translate(&Answer::not_found("at 10.0.0.7"));
        assert!(!error.message().contains("10.0.0.7"));
        assert!(error.to_string().contains("10.0.0.7"), "but in the log");
    }

    fn read(encoding: &str, data: &str) -> Result<Json, String> {
        let metadata = [("encoding".to_owned(), encoding.into())].into();
        let payload = Payload { metadata, data: data.into(), ..Payload::default() };
        from_payloads(Some(Payloads { payloads: vec![payload] }))
    }

    #[test]
    fn values_are_read_whatever_sdk_wrote_them() {
        assert_eq!(read("json/plain", r#"{"a":1}"#), Ok(json!({ "a": 1 }).into()));
        assert_eq!(read("binary/null", ""), Ok(Json::null()));
        assert_eq!(from_payloads(None), Ok(Json::null()));
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(read("json/plain", &nested(100)).is_ok());
        assert!(read("json/plain", &nested(101)).is_err_and(|error| error.contains("deeper")));
        assert!(read("binary/encrypted", "x").is_err());
        assert!(read("json/plain", "{").is_err());
    }

    fn failure(message: &str, info: FailureInfo, cause: Option<Failure>) -> Failure {
        Failure {
            message: message.to_owned(),
            failure_info: Some(info),
            cause: cause.map(Box::new),
            ..Failure::default()
        }
    }

    fn application(message: &str, cause: Option<Failure>) -> Failure {
        let info = ApplicationFailureInfo::default();
        failure(message, FailureInfo::ApplicationFailureInfo(info), cause)
    }

    #[test]
    fn the_error_of_an_execution_is_what_its_step_said() {
        let activity = |cause| {
            let info = ActivityFailureInfo::default();
            failure("activity task failed", FailureInfo::ActivityFailureInfo(info), cause)
        };
        let refused = || application("connection refused", None);
        assert_eq!(failure_text(&activity(Some(refused()))), "connection refused");
        assert_eq!(failure_text(&activity(None)), "activity task failed");
        let explained = application("no payment", Some(activity(Some(refused()))));
        assert_eq!(failure_text(&explained), "no payment: connection refused");
        let repeated = application("no payment: connection refused", Some(refused()));
        assert_eq!(failure_text(&repeated), "no payment: connection refused");
    }
}
