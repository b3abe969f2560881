//! Problem details (RFC 9457).

use poem::{Response, http::StatusCode};
use poem_openapi::{Object, types::ToJSON};

use crate::config;

/// The media type of problems.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";
/// The prefix of our problem types.
const TYPE_PREFIX: &str = "urn:agentarea:problem:";

/// A problem with a request (RFC 9457).
#[derive(Clone, Debug, Object)]
pub(super) struct Problem {
    /// A stable identifier of the kind of problem, for programs to act on.
    #[oai(rename = "type")]
    pub(super) kind: String,
    /// A short summary of the kind of problem.
    pub(super) title: String,
    /// The HTTP status.
    pub(super) status: u16,
    /// An explanation specific to this request.
    #[oai(skip_serializing_if_is_none)]
    pub(super) detail: Option<String>,
    /// The path of the request.
    #[oai(skip_serializing_if_is_none)]
    pub(super) instance: Option<String>,
    /// The request's id, as in the header `x-request-id` and in the log.
    #[oai(skip_serializing_if_is_none)]
    pub(super) request_id: Option<String>,
    /// The invalid events of a batch, each with the reason.
    #[oai(skip_serializing_if_is_none)]
    pub(super) invalid: Option<Vec<InvalidItem>>,
    /// The problems with the configuration.
    #[oai(skip_serializing_if_is_none)]
    pub(super) configuration: Option<Vec<ConfigurationProblem>>,
}

/// An invalid item of a batch.
#[derive(Clone, Debug, Object)]
pub(super) struct InvalidItem {
    /// Its index in the batch, starting at zero.
    pub(super) index: u64,
    /// The reason why it is invalid.
    pub(super) detail: String,
}

/// A problem with the configuration.
#[derive(Clone, Debug, Object)]
pub(super) struct ConfigurationProblem {
    /// The key; empty for a whole file.
    pub(super) key: String,
    /// The file and line, or the variable, that sets it.
    #[oai(skip_serializing_if_is_none)]
    pub(super) place: Option<String>,
    /// The value found and the value expected.
    pub(super) message: String,
    /// A suggestion for what was probably meant.
    #[oai(skip_serializing_if_is_none)]
    pub(super) suggestion: Option<String>,
}

impl From<&config::Problem> for ConfigurationProblem {
    fn from(problem: &config::Problem) -> Self {
        Self {
            key: problem.key.clone(),
            place: problem.place.as_ref().map(ToString::to_string),
            message: problem.message.clone(),
            suggestion: problem.suggestion.clone(),
        }
    }
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &str, title: &str) -> Self {
        Self {
            kind: format!("{TYPE_PREFIX}{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: None,
            instance: None,
            request_id: None,
            invalid: None,
            configuration: None,
        }
    }

    pub(super) fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Response::builder().status(status).content_type(MEDIA_TYPE).body(self.to_json_string())
    }
}
