//! Log lines: for people in development, JSON in production.
//!
//! Lines go to standard error, or through a background writer to rolling files. The writer is
//! flushed when its guard is dropped, which `main` does last.

use tracing_appender::{
    non_blocking::WorkerGuard,
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogFormat, LogRotation, Telemetry};

/// Flushes the log files when dropped.
pub(super) type LogGuard = Option<WorkerGuard>;

type Lines = Box<dyn Layer<Registry> + Send + Sync>;

/// The layer that writes log lines.
///
/// # Errors
/// When the filter cannot be read or the log folder cannot be written.
pub(super) fn layer(config: &Telemetry) -> anyhow::Result<(Lines, LogGuard)> {
    let filter = EnvFilter::try_new(&config.log_filter)
        .map_err(|error| anyhow::anyhow!("telemetry.log_filter cannot be read: {error}"))?;
    let (writer, guard) = match &config.log_dir {
        None => (tracing_subscriber::fmt::writer::BoxMakeWriter::new(std::io::stderr), None),
        Some(dir) => {
            let rotation = match config.log_rotation {
                LogRotation::Hourly => Rotation::HOURLY,
                LogRotation::Daily => Rotation::DAILY,
                LogRotation::Never => Rotation::NEVER,
            };
            let appender = RollingFileAppender::builder()
                .rotation(rotation)
                .filename_prefix("agentarea-api")
                .filename_suffix("log")
                .max_log_files(config.log_files)
                .build(dir)
                .map_err(|error| {
                    anyhow::anyhow!("telemetry.log_dir {} cannot be used: {error}", dir.display())
                })?;
            let (writer, guard) = tracing_appender::non_blocking(appender);
            (tracing_subscriber::fmt::writer::BoxMakeWriter::new(writer), Some(guard))
        }
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: Lines = match config.log_format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            let colours = config.log_dir.is_none() && std::io::stderr().is_terminal();
            lines.with_ansi(colours).with_target(false).boxed()
        }
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    Ok((lines.with_filter(filter).boxed(), guard))
}
