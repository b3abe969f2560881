//! The single middleware around all routes: small pieces, one for each concern, which
//! [`EdgeEndpoint`] applies in order.

mod access;
mod body;
mod deadline;
mod nul;
mod problems;
mod request_id;
mod span;

use std::sync::Arc;

use poem::{
    Endpoint, IntoResponse, Middleware, Request, Response, Result,
    error::NotFoundError,
    http::{HeaderValue, header},
};
use tokio::time::Instant;
use tracing::Instrument;

pub(super) use self::access::Caller;
use self::{
    access::Access,
    problems::{Asked, problem_response},
};
use super::{Draining, ROUTES, State, explain::Parameters};
use crate::{
    config::Config,
    telemetry::{metrics::Metrics, traces},
};

/// The middleware.
#[derive(Clone)]
pub(super) struct Edge {
    config: Arc<Config>,
    access: Access,
    metrics: Arc<Metrics>,
    draining: Draining,
    parameters: Arc<Parameters>,
}

impl Edge {
    pub(super) fn new(state: &State, parameters: Parameters) -> Self {
        Self {
            parameters: Arc::new(parameters),
            config: Arc::clone(&state.config),
            access: Access::new(&state.config),
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

impl<E: Endpoint> Endpoint for EdgeEndpoint<E> {
    type Output = Response;

    /// Surrounds a request with its id, span, trace and metrics, and sets the headers of every
    /// answer.
    async fn call(&self, request: Request) -> Result<Response> {
        let begin = Instant::now();
        let route = ROUTES.find(request.uri().path());
        let method = method_label(request.method().as_str());
        let request_id = request_id::of(&request);
        let uri = request.uri().clone();
        let (span, trace) = span::of(&request, (route, method), &request_id);
        let asked = Asked { route, method, uri: &uri, request_id: &request_id };
        let answer = trace.scope(self.answer(request, &asked));
        let mut response = answer.instrument(span.clone()).await;

        let (took, status) = (begin.elapsed(), response.status().as_u16());
        let label = route.map_or("other", |route| &route.path);
        self.edge.metrics.request(method, label, status, took);
        let duration_ms = took.as_secs_f64() * 1e3;
        tracing::debug!(parent: &span, status, duration_ms, "request answered with {status}");
        traces::answered(&span, status);
        request_id::tell(&mut response, &request_id);
        self.edge.finish(&mut response);
        Ok(response)
    }
}

impl<E: Endpoint> EdgeEndpoint<E> {
    /// Applies every check before the handler. Each refusal is answered with a problem.
    async fn answer(&self, mut request: Request, asked: &Asked<'_>) -> Response {
        let edge = &self.edge;
        let limit = deadline::of(&request, &edge.config);
        let served = async {
            let route = asked
                .route
                .filter(|route| route.is_enabled(&edge.config.features))
                .ok_or_else(|| poem::Error::from(NotFoundError))?;
            edge.access.admit(&mut request, route)?;
            nul::refuse_nul(&request)?;
            body::drop_content_type_parameters(&mut request);
            body::bound(&mut request, edge.config.server.max_body.0).await?;
            self.inner.call(request).await.map(IntoResponse::into_response)
        };
        let served = deadline::within(limit, served).await;
        served.unwrap_or_else(|error| problem_response(&error, asked, &edge.parameters))
    }
}

impl Edge {
    fn finish(&self, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.draining.is_on() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// The metric label of a method, from a closed set.
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
