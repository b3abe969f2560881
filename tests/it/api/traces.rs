//! Spans, as an OpenTelemetry collector receives them.

use std::collections::HashMap;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Duration, timeout},
};
use tokio_stream::wrappers::TcpListenerStream;

use crate::support::{Service, Setup, answer, eventually, free_port, signal};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Accepts spans for as long as it lives.
struct Collector {
    spans: UnboundedReceiver<Span>,
    _serving: JoinSet<Result<(), tonic::transport::Error>>,
}

struct Receiver(UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let of_resources = request.into_inner().resource_spans.into_iter();
        for span in of_resources.flat_map(|of| of.scope_spans).flat_map(|of| of.spans) {
            self.0.send(span).map_err(|_| tonic::Status::unavailable("the test is over"))?;
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(port: u16) -> Self {
        let (sender, spans) = unbounded_channel();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Receiver(sender)));
        let mut serving = JoinSet::new();
        serving.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { spans, _serving: serving }
    }

    /// The next span with this trace and name.
    async fn span(&mut self, trace: &str, name: &str) -> Span {
        let found = async {
            loop {
                let span = self.spans.recv().await.unwrap();
                if hex::encode(&span.trace_id) == trace && span.name == name {
                    return span;
                }
            }
        };
        let found = timeout(Duration::from_secs(30), found).await;
        found.unwrap_or_else(|_| panic!("no span {name} of {trace} came"))
    }
}

fn attributes(span: &Span) -> HashMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    span.attributes
        .iter()
        .filter_map(|one| Some((one.key.as_str(), text(one.value.as_ref()?.value.as_ref()?))))
        .collect()
}

async fn start(port: u16) -> Service {
    let endpoint = format!("\"http://127.0.0.1:{port}\"");
    let service = Setup::new().set("telemetry.otlp_endpoint", &endpoint).start().await;
    service.healthy().await;
    service
}

#[tokio::test]
async fn a_request_and_what_it_causes_are_one_trace() {
    let port = free_port();
    let mut collector = Collector::start(port).await;
    let service = start(port).await;
    let mut events = service.follow("", None).await;
    let given = format!("00-{TRACE}-{PARENT}-01");
    let request = service.post("/v1/events?delivery=direct").header("traceparent", given);
    let (status, _) = answer(request.json(&json!({"type": "t"}))).await;
    assert_eq!(status, 200);
    let carried = events.next().await.data["traceparent"].as_str().unwrap().to_owned();

    // Children end first.
    let attempt = collector.span(TRACE, "attempt").await;
    let request = collector.span(TRACE, "POST /v1/events").await;
    assert_eq!(hex::encode(&request.parent_span_id), PARENT);
    assert_eq!(request.kind(), SpanKind::Server);
    assert_eq!(attributes(&request)["http.response.status_code"], "200");
    assert_eq!(attempt.parent_span_id, request.span_id);
    let attributes = attributes(&attempt);
    assert_eq!(attributes["connection"], "event_broker");
    assert_eq!(attributes["operation"], "publish");
    assert_eq!(carried, format!("00-{TRACE}-{}-01", hex::encode(&request.span_id)));
}

#[tokio::test]
async fn the_wait_for_a_pooled_connection_is_a_span_of_its_attempt() {
    let port = free_port();
    let mut collector = Collector::start(port).await;
    let service = start(port).await;
    let given = format!("00-{TRACE}-{PARENT}-01");
    answer(service.get("/v1/executions").header("traceparent", given)).await;
    let acquire = collector.span(TRACE, "acquire").await;
    let attempt = collector.span(TRACE, "attempt").await;
    assert_eq!(acquire.parent_span_id, attempt.span_id);
    assert_eq!(attributes(&attempt)["connection"], "database");
}

#[tokio::test]
async fn a_failed_request_is_marked_and_an_unsampled_one_is_not_sent() {
    let port = free_port();
    let mut collector = Collector::start(port).await;
    let service = Setup::new()
        .set("telemetry.otlp_endpoint", &format!("\"http://127.0.0.1:{port}\""))
        .set("event_broker.redis.url", "\"redis://127.0.0.1:1\"")
        .set("event_broker.backend", "\"redis\"")
        .start()
        .await;
    let direct = async |flags: &str, trace: &str| {
        let given = format!("00-{trace}-{PARENT}-{flags}");
        let request = service.post("/v1/events?delivery=direct").header("traceparent", given);
        answer(request.json(&json!({"type": "t"}))).await.0
    };
    let unsampled = TRACE.replace('4', "5");
    assert_eq!(direct("00", &unsampled).await, 503);
    assert_eq!(direct("01", TRACE).await, 503);
    let request = loop {
        let span = timeout(Duration::from_secs(30), collector.spans.recv()).await;
        let span = span.expect("a span comes").unwrap();
        assert_ne!(hex::encode(&span.trace_id), unsampled);
        if span.name == "POST /v1/events" {
            break span;
        }
    };
    assert_eq!(request.status.clone().unwrap().code(), StatusCode::Error);
}

#[tokio::test]
async fn a_collector_that_is_down_is_logged_once_and_delays_nothing() {
    let port = free_port();
    let service = start(port).await;
    let told = || service.log().matches("the collector does not accept spans").count();
    eventually("the log tells", async || {
        let (status, _) = service.send("/v1/events", &json!({"type": "t"})).await;
        assert_eq!(status, 202);
        (told() > 0).then_some(())
    })
    .await;
    let mut collector = Collector::start(port).await;
    eventually("the log tells that it is back", async || {
        service.send("/v1/events", &json!({"type": "t"})).await;
        service.log().contains("the collector accepts spans again").then_some(())
    })
    .await;
    assert_eq!(told(), 1);
    assert!(collector.spans.recv().await.is_some());
}

#[tokio::test]
async fn spans_that_are_not_sent_yet_are_sent_at_the_end() {
    let port = free_port();
    let mut collector = Collector::start(port).await;
    let mut service = start(port).await;
    let given = format!("00-{TRACE}-{PARENT}-01");
    answer(service.get("/v1/executions").header("traceparent", given)).await;
    signal(&service.child, "-TERM");
    assert_eq!(service.exit_code().await, Some(0));
    collector.span(TRACE, "GET /v1/executions").await;
}
