//! The single mapping from the program's errors to HTTP.

use std::{fmt, time::Duration};

use poem::{
    Response,
    error::{MethodNotAllowedError, NotFoundError, ReadBodyError, ResponseError},
    http::StatusCode,
};
use poem_openapi::{
    ApiResponse,
    error::{ContentTypeError, ParseParamError, ParsePathError, ParseRequestPayloadError},
    registry::{MetaResponses, Registry},
};

use super::problem::{ConfigurationProblem, InvalidItem, Problem};
use crate::{
    config::ConfigError,
    error::{Error, ErrorKind},
};

/// The pause before a retry that spares a service which has just failed.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The longest detail of a refusal by the framework.
const MAX_DETAIL: usize = 300;

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError {
    error: Error,
    /// The detail of an outage that an operator may read.
    detail: Option<String>,
    invalid: Vec<InvalidItem>,
    configuration: Vec<ConfigurationProblem>,
}

impl ApiError {
    pub(super) fn invalid_items(invalid: Vec<InvalidItem>) -> Self {
        let message = "some events of the batch are invalid; none was stored";
        Self { invalid, ..Error::new(ErrorKind::InvalidInput, message).into() }
    }

    pub(super) fn invalid_configuration(problems: &ConfigError) -> Self {
        let message = "the configuration has problems; nothing was changed";
        let configuration = problems.0.iter().map(ConfigurationProblem::from).collect();
        Self { configuration, ..Error::new(ErrorKind::InvalidInput, message).into() }
    }

    /// Describes why a connection cannot be made, by class and remedy. The error's text can contain
    /// an address, and stays in the log.
    pub(super) fn for_operators(connection: &str, error: Error) -> Self {
        let class = error.kind();
        if !class.is_outage() {
            return error.into();
        }
        tracing::warn!(connection, %error, error.class = class.as_str(), "it cannot be made");
        let remedy = error.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        let detail = format!("{connection} cannot be made ({class}); nothing was changed{remedy}");
        // The failed attempt has not touched the connection in use.
        Self { detail: Some(detail), ..error.without_effect().into() }
    }

    /// The time that the client should wait, where waiting helps.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let unavailable = self.status() == StatusCode::SERVICE_UNAVAILABLE;
        self.error.retry_after().or(unavailable.then_some(RETRY_AFTER))
    }

    pub(super) fn error(&self) -> &Error {
        &self.error
    }

    pub(super) fn problem(&self) -> Problem {
        let (status, kind, title) = classify(&self.error);
        let mut problem = Problem::new(status, kind, title);
        // The text of an outage can contain an address; that of a bad request is meant for the
        // client.
        if !self.error.kind().is_outage() && self.error.kind() != ErrorKind::Internal {
            problem.detail = Some(self.error.message().to_owned());
        }
        if self.detail.is_some() {
            problem.detail.clone_from(&self.detail);
        }
        if !self.configuration.is_empty() {
            problem.configuration = Some(self.configuration.clone());
        }
        if !self.invalid.is_empty() {
            problem.invalid = Some(self.invalid.clone());
        }
        problem
    }
}

/// The table: kind → status, stable type, title.
fn classify(error: &Error) -> (StatusCode, &'static str, &'static str) {
    use ErrorKind as K;
    match error.kind() {
        K::InvalidInput => {
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid-input", "The input is invalid")
        }
        K::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
        K::AlreadyExists => (StatusCode::CONFLICT, "already-exists", "The id is taken"),
        K::Conflict => (StatusCode::CONFLICT, "conflict", "The request conflicts with the state"),
        K::KeyReused => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The Idempotency-Key was used for another request",
        ),
        K::Unsupported => {
            (StatusCode::NOT_IMPLEMENTED, "unsupported", "The backend in use cannot do this")
        }
        K::Internal => {
            (StatusCode::INTERNAL_SERVER_ERROR, "internal", "An internal error happened")
        }
        _ if error.outcome_unknown() => (
            StatusCode::SERVICE_UNAVAILABLE,
            "outcome-unknown",
            "It is not known whether the request had its effect",
        ),
        K::Overloaded | K::Throttled => {
            (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too much is asked for at once")
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "A needed connection is down"),
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self { error, detail: None, invalid: Vec::new(), configuration: Vec::new() }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        classify(&self.error).0
    }
}

// The specification's error responses come from the table of routes.
impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        MetaResponses { responses: Vec::new() }
    }

    fn register(_: &mut Registry) {}
}

/// Describes a refusal by poem itself: input that fits no type, an unknown route, or a body that is
/// too large. `parameter` returns what the parameter of a given name should be.
pub(super) fn framework_problem(
    error: &poem::Error,
    parameter: impl Fn(&str) -> String,
) -> Problem {
    let status = error.status();
    if let Some(ParseRequestPayloadError { reason }) = error.downcast_ref() {
        return with_detail(status, "invalid-body", "The body cannot be read", reason);
    }
    if let Some(name) = refused_parameter(error) {
        let title = "A parameter cannot be read";
        return with_detail(status, "invalid-parameter", title, parameter(name));
    }
    if error.is::<ContentTypeError>() {
        let title = "The content type is not supported";
        return with_detail(status, "unsupported-media-type", title, error);
    }
    if error.is::<NotFoundError>() {
        return Problem::new(status, "not-found", "There is no such thing");
    }
    if error.is::<MethodNotAllowedError>() {
        return Problem::new(status, "method-not-allowed", "The route does not have this method");
    }
    if matches!(error.downcast_ref(), Some(ReadBodyError::PayloadTooLarge)) {
        return too_large();
    }
    match status {
        StatusCode::BAD_REQUEST => {
            with_detail(status, "invalid-request", "The request cannot be read", error)
        }
        _ => Problem::new(
            status,
            if status.is_server_error() { "internal" } else { "invalid-request" },
            status.canonical_reason().unwrap_or("The request was not served"),
        ),
    }
}

fn refused_parameter(error: &poem::Error) -> Option<&'static str> {
    let parameter = error.downcast_ref().map(|error: &ParseParamError| error.name);
    parameter.or_else(|| error.downcast_ref().map(|error: &ParsePathError| error.name))
}

/// The error for a parameter or header that cannot be read.
pub(super) fn bad_request(message: impl Into<String>) -> poem::Error {
    poem::Error::from_string(message, StatusCode::BAD_REQUEST)
}

/// The answer when a handler panics; the panic itself goes to standard error.
pub(super) fn panicked() -> Response {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(status, "internal", "An internal error happened").into_response()
}

pub(super) fn too_large() -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The body is too large")
}

fn with_detail(status: StatusCode, kind: &str, title: &str, detail: impl fmt::Display) -> Problem {
    // The framework repeats its input, at any length.
    let detail = detail.to_string().chars().take(MAX_DETAIL).collect();
    Problem { detail: Some(detail), ..Problem::new(status, kind, title) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_an_outage_never_reaches_the_client() {
        let outage = Error::new(ErrorKind::Refused, "10.0.0.7:6379 refuses");
        let problem = ApiError::from(outage).problem();
        assert_eq!((problem.status, problem.detail), (503, None));
        let bad = Error::new(ErrorKind::InvalidInput, "there is no workflow \"x\"");
        let problem = ApiError::from(bad).problem();
        assert_eq!(problem.status, 422);
        assert!(problem.detail.is_some());
    }

    #[test]
    fn a_lost_answer_is_told_from_a_refusal() {
        for (kind, expected) in [
            (ErrorKind::Disconnected, "outcome-unknown"),
            (ErrorKind::OutcomeUnknown, "outcome-unknown"),
            (ErrorKind::Refused, "unavailable"),
            (ErrorKind::Busy, "unavailable"),
        ] {
            let problem = ApiError::from(Error::new(kind, "")).problem();
            assert!(problem.kind.ends_with(expected), "{}", problem.kind);
        }
    }
}
