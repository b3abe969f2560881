//! Logs, metrics and traces.

mod logs;
pub mod metrics;
#[cfg(feature = "otel")]
mod otlp;
pub mod traces;

use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::Telemetry;

/// Flushes logs and spans when dropped.
#[derive(Debug)]
pub struct TelemetryGuard {
    // In this order, so that the exporter's last messages are still logged.
    #[cfg(feature = "otel")]
    _spans: Option<otlp::Exporter>,
    _logs: logs::LogGuard,
}

/// Installs the subscriber of the process. Must be called within a runtime.
///
/// # Errors
/// When the filter cannot be read, the log folder cannot be written, or the collector's address
/// cannot be used.
pub fn init(config: &Telemetry) -> anyhow::Result<TelemetryGuard> {
    let (lines, logs) = logs::layer(config)?;
    let subscriber = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "otel")]
    let spans = otlp::Exporter::new(config)?;
    #[cfg(feature = "otel")]
    let subscriber = subscriber.with(spans.as_ref().map(otlp::Exporter::layer));
    subscriber.try_init()?;
    Ok(TelemetryGuard {
        #[cfg(feature = "otel")]
        _spans: spans,
        _logs: logs,
    })
}
