//! Spans to an OpenTelemetry collector, over OTLP/gRPC.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{
    Context,
    trace::{
        SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        TracerProvider,
    },
};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use tonic::transport::ClientTlsConfig;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use super::traces::TraceContext;
use crate::config::Telemetry;

/// How long the program waits at its end for unsent spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Sends spans in the background, in batches.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// The exporter that `config` asks for. Must be called within a runtime.
    ///
    /// # Errors
    /// When the endpoint cannot be used. A collector that is down is not an error.
    pub(super) fn new(config: &Telemetry) -> anyhow::Result<Option<Self>> {
        let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
        let exporter = OtlpExporter::builder().with_tonic().with_endpoint(endpoint);
        let exporter = if endpoint.starts_with("https:") {
            exporter.with_tls_config(ClientTlsConfig::new().with_webpki_roots())
        } else {
            exporter
        };
        let exporter = exporter
            .build()
            .map_err(|error| anyhow::anyhow!("telemetry.otlp_endpoint cannot be used: {error}"))?;
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(version)
            .build();
        // The sampling decision of the caller is kept.
        let share = Sampler::TraceIdRatioBased(config.trace_sampling);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Reporting { exporter, failing: AtomicBool::new(false) })
            .with_sampler(Sampler::ParentBased(Box::new(share)))
            .with_resource(resource)
            .build();
        Ok(Some(Self(provider)))
    }

    /// The layer that receives the program's own spans.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer = self.0.tracer(env!("CARGO_PKG_NAME"));
        let layer = tracing_opentelemetry::layer().with_tracer(tracer);
        layer.with_threads(false).with_filter(filter_fn(is_exported))
    }
}

/// Sends the remaining spans.
impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_SPANS) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

/// Exports spans of calls and of requests, except those of probes and pages, which are of no
/// interest. Log lines are handled by another layer.
fn is_exported(of: &Metadata<'_>) -> bool {
    let is_quiet_request = of.name() == "request" && *of.level() == Level::DEBUG;
    of.is_span() && of.target().starts_with("agentarea_api") && !is_quiet_request
}

/// Starts the exported span of a request; `None` if spans are not exported.
pub(super) fn begin_request(
    span: &Span,
    method: &str,
    route: &str,
    parent: Option<TraceContext>,
) -> Option<TraceContext> {
    let parent = parent
        .map(remote)
        .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
    span.set_parent(parent).ok()?;
    span.record("otel.kind", "server");
    span.record("otel.name", tracing::field::display(format_args!("{method} {route}")));
    let context = span.context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| TraceContext {
        trace: u128::from_be_bytes(span.trace_id().to_bytes()),
        span: u64::from_be_bytes(span.span_id().to_bytes()),
        flags: span.trace_flags().to_u8(),
    })
}

/// Ends the exported span of a request with its answer's status.
pub(super) fn end_request(span: &Span, status: u16) {
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(Status::error(""));
    }
}

fn remote(context: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(context.trace.to_be_bytes()),
        SpanId::from_bytes(context.span.to_be_bytes()),
        TraceFlags::new(context.flags),
        true,
        TraceState::default(),
    )
}

/// Logs once that the collector does not accept spans, and once that it accepts them again.
#[derive(Debug)]
struct Reporting<E> {
    exporter: E,
    failing: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Reporting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !failed_before => {
                tracing::warn!(%error, spans, "the collector does not accept spans; dropping them");
            }
            Ok(()) if failed_before => tracing::info!("the collector accepts spans again"),
            _ => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
