//! The span of a request, whose fields appear on each of its log lines, and the trace it belongs
//! to.

use poem::Request;
use tracing::{Level, Span, field::Empty};

use super::super::operation::Route;
use crate::telemetry::traces::TraceContext;

/// The span whose fields appear on each log line of a request.
macro_rules! request_span {
    ($level:expr, $request_id:expr, $method:expr, $uri:expr) => {
        tracing::span!(
            $level,
            "request",
            request_id = %$request_id,
            trace_id = Empty,
            method = $method,
            path = $uri.path(),
            // Recorded only when spans are exported.
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
    // At error level, so that a filter that admits only warnings and errors keeps the request to
    // which they belong.
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
