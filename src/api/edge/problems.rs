//! Answers every refusal and every failure with a problem.

use poem::{
    Request, Response,
    http::{HeaderValue, StatusCode, Uri, header},
};

use super::super::{
    error::{ApiError, framework_problem, too_large},
    explain::Parameters,
    foreign::Foreign,
    operation::Route,
    problem::Problem,
};
use crate::config::Scope;

/// The refusals of the middleware itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("a valid API key is needed")]
    Unauthenticated,
    #[error("the API key lacks the scope {}", .0.as_str())]
    Forbidden(Scope),
    #[error(transparent)]
    Foreign(#[from] Foreign),
    #[error("the request took too long")]
    Late,
    #[error("the body is too large")]
    TooLarge,
}

impl poem::error::ResponseError for Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Foreign(foreign) => foreign.status(),
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl Refusal {
    fn problem(&self) -> Problem {
        let status = poem::error::ResponseError::status(self);
        let (kind, title) = match self {
            Self::Unauthenticated => ("unauthenticated", "A valid API key is needed"),
            Self::Forbidden(_) => ("forbidden", "The API key does not allow this"),
            Self::Foreign(foreign) => return foreign.problem(),
            Self::Late => ("timeout", "The request took too long; it may have had its effect"),
            Self::TooLarge => return too_large(),
        };
        Problem { detail: Some(self.to_string()), ..Problem::new(status, kind, title) }
    }
}

/// The facts of a request that its problem states.
pub(super) struct Asked<'a> {
    pub(super) route: Option<&'static Route>,
    /// As a metric label.
    pub(super) method: &'static str,
    pub(super) uri: &'a Uri,
    pub(super) request_id: &'a str,
}

impl Asked<'_> {
    /// The reason why a parameter was refused.
    fn refused(&self, name: &str, parameters: &Parameters) -> String {
        let query = self.uri.query().unwrap_or_default();
        let given: Vec<(String, String)> =
            Request::builder().uri_str(format!("/?{query}")).finish().params().unwrap_or_default();
        let value = given.iter().find(|(given, _)| given == name);
        let path = self.route.map_or("", |route| &route.path);
        parameters.explain((path, self.method), name, value.map(|(_, value)| value.as_str()))
    }
}

pub(super) fn problem_response(
    error: &poem::Error,
    asked: &Asked<'_>,
    parameters: &Parameters,
) -> Response {
    let mut retry_after = None;
    let mut problem = if let Some(error) = error.downcast_ref::<ApiError>() {
        retry_after = error.retry_after();
        if error.error().kind().is_outage() {
            tracing::debug!(error = %error, "request refused");
        }
        error.problem()
    } else if let Some(refusal) = error.downcast_ref::<Refusal>() {
        refusal.problem()
    } else {
        framework_problem(error, |name| asked.refused(name, parameters))
    };
    if problem.status == 500 {
        tracing::error!(%error, "request failed");
    }
    problem.instance = Some(asked.uri.path().to_owned());
    problem.request_id = Some(asked.request_id.to_owned());
    let status = problem.status;
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    if let Some(after) = retry_after {
        let seconds = after.as_secs().max(1);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let (405, Some(route)) = (status, asked.route)
        && let Ok(methods) = HeaderValue::from_str(&route.methods().join(", "))
    {
        headers.insert(header::ALLOW, methods);
    }
    response
}
