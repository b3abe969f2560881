//! `[telemetry]`.

use std::{fmt, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::{given::given, problem::SectionProblems, suggest::closest_word};

/// The valid levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Logs and traces.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// The log filter, in the syntax of `RUST_LOG`: a level (`error`, `warn`, `info`, `debug`,
    /// `trace`), or levels by module such as `info,agentarea_api::connection=debug`.
    pub log_filter: String,
    /// `text` for people, `json` for machines.
    pub log_format: LogFormat,
    /// Folder for log files, instead of standard error. `log_rotation` sets when they roll.
    pub log_dir: Option<PathBuf>,
    /// When a new log file starts; only with `log_dir`.
    pub log_rotation: LogRotation,
    /// How many log files are kept; only with `log_dir`.
    #[schemars(range(min = 1, max = 10_000))]
    pub log_files: usize,
    /// Address of an OpenTelemetry collector that accepts spans over OTLP/gRPC, such as
    /// `http://collector:4317`. If unset, no spans are sent. Needs a build with the cargo feature
    /// `otel`.
    pub otlp_endpoint: Option<String>,
    /// The share of traces started here that are sent, 0 to 1. A trace started by a client is sent
    /// if its `traceparent` is marked as sampled.
    #[schemars(range(min = 0, max = 1))]
    pub trace_sampling: f64,
}

// The address of a collector can contain credentials, and the filter any text set by mistake.
impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("log_format", &self.log_format).finish_non_exhaustive()
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            // The Temporal SDK repeats a warning every second of an outage; our own log lines
            // report it once.
            log_filter: "info,temporalio_client=error,temporalio_sdk_core=error".to_owned(),
            log_format: LogFormat::Text,
            log_dir: None,
            log_rotation: LogRotation::Daily,
            log_files: 14,
            otlp_endpoint: None,
            trace_sampling: 1.0,
        }
    }
}

impl ConfigSection for Telemetry {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        let is_level = |word: &str| LEVELS.contains(&word.to_lowercase().as_str());
        let words = self.log_filter.split(',').map(str::trim).filter(|word| !word.is_empty());
        for word in words {
            // `EnvFilter` reads a single unknown word as a module name, which would silence all
            // other modules.
            if !word.contains(['=', '[', ':']) && !is_level(word) {
                let found = given(word);
                problems.add_suggesting(
                    "log_filter",
                    format!(
                        "{found} is not a level; expected error, warn, info, debug, trace, or \
                         MODULE=LEVEL"
                    ),
                    closest_word(word, LEVELS),
                );
            }
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            if !cfg!(feature = "otel") {
                let message = "needs the cargo feature otel, which this build lacks";
                problems.add("otlp_endpoint", message.to_owned());
            } else if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                let found = given(endpoint);
                let message = format!("expected http://host:4317, found {found}");
                problems.add("otlp_endpoint", message);
            }
        }
        // The parser's message can repeat its input, so it is not shown.
        if tracing_subscriber::EnvFilter::try_new(&self.log_filter).is_err() {
            problems.add(
                "log_filter",
                "cannot be read; expected a level or MODULE=LEVEL, or several separated by commas",
            );
        }
    }
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// When a new log file starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogRotation {
    /// Each hour.
    Hourly,
    /// Each day.
    Daily,
    /// Never.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn a_filter_is_made_of_levels() {
        assert_eq!(problems_of("telemetry", &Telemetry::default()), [""; 0]);
        let filter = |text: &str| {
            let log_filter = text.to_owned();
            problems_of("telemetry", &Telemetry { log_filter, ..Telemetry::default() })
        };
        assert_eq!(filter("WARN,agentarea_api::connection=debug"), [""; 0]);
        let told = filter("info,dubug");
        assert!(told[0].ends_with("did you mean `debug`?"), "{told:?}");
        assert!(filter("agentarea_api=loud")[0].contains("cannot be read"));
    }
}
