//! Problem details (RFC 9457).

use poem::{Response, http::StatusCode};
use poem_openapi::{Object, types::ToJSON};

use crate::config;

/// The media type of problems.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";
/// The prefix of our problem types.
const TYPE_PREFIX: &str = "urn:agentarea:problem:";

/// Why a request was not served (RFC 9457).
#[derive(Clone, Debug, Object)]
pub(super) struct Problem {
    /// Identifies the kind of problem; stable, for programs to decide by.
    #[oai(rename = "type")]
    pub(super) kind: String,
    /// The kind of problem in words.
    pub(super) title: String,
    /// The HTTP status.
    pub(super) status: u16,
    /// What is wrong with this request.
    #[oai(skip_serializing_if_is_none)]
    pub(super) detail: Option<String>,
    /// The path of the request.
    #[oai(skip_serializing_if_is_none)]
    pub(super) instance: Option<String>,
    /// The request's id, as in the header `x-request-id` and in the log.
    #[oai(skip_serializing_if_is_none)]
    pub(super) request_id: Option<String>,
    /// Which events of a batch are wrong, and why.
    #[oai(skip_serializing_if_is_none)]
    pub(super) invalid: Option<Vec<InvalidItem>>,
    /// What is wrong with the configuration.
    #[oai(skip_serializing_if_is_none)]
    pub(super) configuration: Option<Vec<ConfigurationProblem>>,
}

/// An item of a batch that is wrong.
#[derive(Clone, Debug, Object)]
pub(super) struct InvalidItem {
    /// Its place in the batch, from zero.
    pub(super) index: u64,
    /// What is wrong with it.
    pub(super) detail: String,
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, Object)]
pub(super) struct ConfigurationProblem {
    /// The key; empty for a whole file.
    pub(super) key: String,
    /// The file and line, or the variable, that sets it.
    #[oai(skip_serializing_if_is_none)]
    pub(super) place: Option<String>,
    /// What was found and what was expected.
    pub(super) message: String,
    /// What was probably meant.
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
