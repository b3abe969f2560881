//! The span of a request, whose fields stand on each of its log lines, and the trace it is part of.

use poem::Request;
use tracing::{Level, Span, field::Empty};

use super::super::routes::Route;
use crate::telemetry::traces::TraceContext;

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

pub(super) fn of(
    request: &Request,
    (route, method): (Option<&Route>, &'static str),
    request_id: &str,
) -> (Span, TraceContext) {
    // At the level of errors, so that a filter which lets only warnings and errors pass leaves
    // them the request that they belong to.
    let span = if route.is_some_and(Route::is_probe) {
        request_span!(Level::DEBUG, request_id, method, request.uri())
    } else {
        request_span!(Level::ERROR, request_id, method, request.uri())
    };
    let label = route.map_or("other", |route| &route.path);
    let trace = TraceContext::of_request(&span, method, label, request.header("traceparent"));
    span.record("trace_id", tracing::field::display(trace.trace_id()));
    (span, trace)
}
