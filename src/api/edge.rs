//! The one middleware around all routes: request id, span, doors, body limit, deadline, problems,
//! metrics, and the hint to leave while draining.

use std::{sync::Arc, time::Duration};

use poem::{
    Endpoint, IntoResponse, Middleware, Request, Response, Result,
    error::{MethodNotAllowedError, NotFoundError},
    http::{HeaderValue, StatusCode, Uri, header},
};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, Level, field::Empty};

use super::{
    Draining, State,
    auth::{Keys, Principal},
    error::{ApiError, bad_request, framework_problem, too_large},
    explain::Parameters,
    foreign::{Foreign, Gate},
    problem::Problem,
    routes::{self, Route},
};
use crate::{
    config::{Config, Scope, values::duration},
    connection,
    model::ids,
    telemetry::{
        metrics::Metrics,
        traces::{self, TraceContext},
    },
};

const REQUEST_ID: &str = "x-request-id";
/// Calls to a backend end at the deadline with an error of their own; what passes no guard is cut
/// off so much later.
const GRACE: Duration = Duration::from_millis(100);
/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 64;

/// The middleware.
#[derive(Clone)]
pub(super) struct Edge {
    config: Arc<Config>,
    keys: Keys,
    gate: Gate,
    metrics: Arc<Metrics>,
    draining: Draining,
    parameters: Arc<Parameters>,
}

impl Edge {
    pub(super) fn new(state: &State, parameters: Parameters) -> Self {
        Self {
            parameters: Arc::new(parameters),
            config: Arc::clone(&state.config),
            keys: Keys::new(&state.config.auth),
            gate: Gate::new(&state.config),
            metrics: Arc::clone(&state.metrics),
            draining: state.draining.clone(),
        }
    }
}

impl<E: Endpoint> Middleware<E> for Edge {
    type Output = EdgeEndpoint<E>;

    fn transform(&self, inner: E) -> EdgeEndpoint<E> {
        EdgeEndpoint { inner, edge: self.clone() }
    }
}

/// Routes behind the middleware.
pub(super) struct EdgeEndpoint<E> {
    inner: E,
    edge: Edge,
}

/// The span whose fields stand on each log line of a request.
macro_rules! request_span {
    ($level:expr, $request_id:expr, $method:expr, $uri:expr) => {
        tracing::span!(
            $level,
            "request",
            request_id = %$request_id,
            trace_id = Empty,
            method = $method,
            path = $uri.path(),
            // Only when spans are exported.
            otel.kind = Empty,
            otel.name = Empty,
        )
    };
}

impl<E: Endpoint> Endpoint for EdgeEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let begin = Instant::now();
        let route = routes::find(request.uri().path());
        let method = method_label(request.method().as_str());
        let request_id = request_id(&request);
        let uri = request.uri().clone();
        // At the level of errors, so that a filter which lets only warnings and errors pass leaves
        // them the request that they belong to.
        let span = if route.is_some_and(Route::is_probe) {
            request_span!(Level::DEBUG, request_id, method, uri)
        } else {
            request_span!(Level::ERROR, request_id, method, uri)
        };
        let label = route.map_or("other", |route| route.path);
        let given = request.header("traceparent");
        let trace = TraceContext::of_request(&span, method, label, given);
        span.record("trace_id", tracing::field::display(trace.trace_id()));
        let asked = Asked { route, method, uri: &uri, request_id: &request_id };
        let answer = trace.scope(self.answer(request, &asked));
        let mut response = answer.instrument(span.clone()).await;
        let took = begin.elapsed();
        let status = response.status().as_u16();
        self.edge.metrics.request(method, label, status, took);
        let duration_ms = took.as_secs_f64() * 1e3;
        tracing::debug!(parent: &span, status, duration_ms, "request answered with {status}");
        traces::answered(&span, status);
        self.edge.finish(&mut response, &request_id);
        Ok(response)
    }
}

impl<E: Endpoint> EdgeEndpoint<E> {
    async fn answer(&self, mut request: Request, asked: &Asked<'_>) -> Response {
        let edge = &self.edge;
        let deadline = edge.config.server.request_timeout + granted_wait(&request, &edge.config);
        let served = async {
            let route = asked
                .route
                .filter(|route| (route.enabled)(&edge.config.features))
                .ok_or_else(|| poem::Error::from(NotFoundError))?;
            edge.admit(&mut request, route)?;
            refuse_nul(&request)?;
            edge.bound_body(&mut request).await?;
            self.inner.call(request).await.map(IntoResponse::into_response)
        };
        let served = connection::within(Instant::now() + deadline, served);
        let error = match timeout(deadline + GRACE, served).await {
            Ok(Ok(response)) => return response,
            Ok(Err(error)) => error,
            Err(_) => Refusal::Late.into(),
        };
        problem_response(&error, asked, &edge.parameters)
    }
}

/// No id has a NUL, and databases take none in text.
fn refuse_nul(request: &Request) -> Result<(), poem::Error> {
    if request.uri().path().contains("%00") {
        return Err(NotFoundError.into());
    }
    if let Some(query) = request.uri().query().filter(|query| query.contains("%00")) {
        let pair = |pair: &&str| pair.contains("%00");
        let pair = query.split('&').find(pair).unwrap_or_default();
        let name = pair.split('=').next().unwrap_or_default();
        return Err(bad_request(format!("`{name}` has a NUL character")));
    }
    Ok(())
}

/// `application/cloudevents+json; charset=utf-8` is that type too; JSON has one charset.
fn drop_content_type_parameters(request: &mut Request) {
    let essence = request
        .header(header::CONTENT_TYPE)
        .and_then(|value| value.split_once(';'))
        .and_then(|(essence, _)| HeaderValue::from_str(essence.trim()).ok());
    if let Some(essence) = essence {
        request.headers_mut().insert(header::CONTENT_TYPE, essence);
    }
}

/// What the middleware itself refuses.
#[derive(Debug, thiserror::Error)]
enum Refusal {
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

impl Edge {
    /// Lets a request in if no foreign page sends it, and its route is open or its key has the scope.
    fn admit(&self, request: &mut Request, route: &Route) -> Result<(), poem::Error> {
        self.gate.admit(request, route.is_probe()).map_err(Refusal::from)?;
        let name = request.method().as_str();
        let wanted = if name == "HEAD" { "GET" } else { name };
        let method = route
            .methods
            .iter()
            .find(|method| method.name == wanted)
            .ok_or_else(|| poem::Error::from(MethodNotAllowedError))?;
        let principal = self.keys.identify(request.header(header::AUTHORIZATION));
        let open = route.path == "/metrics" && self.config.auth.open_metrics;
        if let Some(scope) = method.scope.filter(|_| !open) {
            let principal = principal.as_ref().ok_or(Refusal::Unauthenticated)?;
            if !principal.may(scope) {
                return Err(Refusal::Forbidden(scope).into());
            }
        }
        request.set_data(Caller(principal));
        drop_content_type_parameters(request);
        Ok(())
    }

    /// Refuses a body that is declared too large, and buffers one of undeclared length up to the
    /// bound.
    async fn bound_body(&self, request: &mut Request) -> Result<(), poem::Error> {
        let max = self.config.server.max_body.0;
        let declared = request.header(header::CONTENT_LENGTH).map(str::parse::<usize>);
        if matches!(declared, Some(Ok(length)) if length > max) {
            return Err(Refusal::TooLarge.into());
        }
        // HTTP/2 declares neither; reading to the bound costs nothing where there is no body.
        if declared.is_none() {
            let body = request.take_body().into_bytes_limit(max).await?;
            request.set_body(body);
        }
        Ok(())
    }

    fn finish(&self, response: &mut Response, request_id: &str) {
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(request_id) {
            headers.insert(REQUEST_ID, value);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.draining.is_on() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Who sends the request, if known; open routes are told too.
#[derive(Clone, Debug)]
pub(super) struct Caller(pub(super) Option<Principal>);

impl Caller {
    /// The name that idempotency keys belong to.
    pub(super) fn name(&self) -> &str {
        self.0.as_ref().map_or("anonymous", |principal| &*principal.name)
    }

    pub(super) fn may_read(&self) -> bool {
        self.0.as_ref().is_some_and(|principal| principal.may(Scope::Read))
    }
}

/// What an answer that is a problem says of its request.
struct Asked<'a> {
    route: Option<&'static Route>,
    /// As a metric label.
    method: &'static str,
    uri: &'a Uri,
    request_id: &'a str,
}

impl Asked<'_> {
    /// Why a parameter was refused.
    fn refused(&self, name: &str, parameters: &Parameters) -> String {
        let query = self.uri.query().unwrap_or_default();
        let given: Vec<(String, String)> =
            Request::builder().uri_str(format!("/?{query}")).finish().params().unwrap_or_default();
        let value = given.iter().find(|(given, _)| given == name);
        let path = self.route.map_or("", |route| route.path);
        parameters.explain((path, self.method), name, value.map(|(_, value)| value.as_str()))
    }
}

fn problem_response(error: &poem::Error, asked: &Asked<'_>, parameters: &Parameters) -> Response {
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
    if let (405, Some(route)) = (status, asked.route) {
        let allow: Vec<&str> = route.methods.iter().map(|method| method.name).collect();
        if let Ok(value) = HeaderValue::from_str(&allow.join(", ")) {
            headers.insert(header::ALLOW, value);
        }
    }
    response
}

/// A client's id is taken over if it is harmless in a header and in a log line.
fn request_id(request: &Request) -> String {
    request
        .header(REQUEST_ID)
        .filter(|id| {
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
        })
        .map_or_else(ids::new_id, str::to_owned)
}

/// Waiting that the client asks for comes on top of the request's own time.
fn granted_wait(request: &Request, config: &Config) -> Duration {
    let query = request.uri().query().unwrap_or_default();
    let wait = query.split('&').find_map(|pair| pair.strip_prefix("wait="));
    wait.and_then(|text| duration::parse(text).ok())
        .map_or(Duration::ZERO, |wait| wait.min(config.executions.max_wait))
}

/// Methods as metric labels: a closed set.
fn method_label(method: &str) -> &'static str {
    match method {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
