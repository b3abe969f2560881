//! `[workflows.<name>]`.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::{
    problem::SectionProblems,
    values::{Size, duration},
};
use crate::model::executions::{StepRetry, Workflow};

/// The kind of a workflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Kind {
    /// Returns its input.
    #[default]
    Echo,
    /// POSTs its input to `url`; the JSON answer is the result. Redirects are not followed.
    Http,
    /// Runs on external Temporal workers, in any language.
    Temporal,
}

/// A workflow that can be executed, by name.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct WorkflowConfig {
    /// `echo`: returns its input. `http`: POSTs its input to `url`; the JSON answer is the result;
    /// redirects are not followed. `temporal`: runs on external Temporal workers, in any language.
    pub kind: Kind,
    /// Time before an echo returns; only with `echo`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "1d"))]
    pub delay: Duration,
    /// The URL to which the input is sent; required with `http`, unused otherwise.
    pub url: Option<String>,
    /// Time for one attempt; only with `http`.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "1d"))]
    pub timeout: Duration,
    /// The largest answer accepted; a larger one fails the execution. Only with `http`.
    #[schemars(extend("x-minimum" = "1KiB", "x-maximum" = "64MiB"))]
    pub max_answer: Size,
    /// Retries of failed attempts; only with `http`.
    pub retry: RetryConfig,
    /// The workflow type that the workers register; required with `temporal`, unused otherwise.
    pub workflow_type: Option<String>,
    /// The task queue that the workers poll; only with `temporal`. Defaults to that of the
    /// connection.
    pub task_queue: Option<String>,
}

// A URL can contain credentials.
impl fmt::Debug for WorkflowConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkflowConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Default for WorkflowConfig {
    fn default() -> Self {
        Self {
            kind: Kind::Echo,
            delay: Duration::ZERO,
            url: None,
            timeout: Duration::from_secs(30),
            max_answer: Size(Workflow::MAX_ANSWER),
            retry: RetryConfig::default(),
            workflow_type: None,
            task_queue: None,
        }
    }
}

/// Retries of a failed workflow step.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct RetryConfig {
    /// The most attempts, including the first.
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// The pause before the second attempt.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "1d"))]
    pub initial_backoff: Duration,
    /// The longest pause.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "1ms", "x-maximum" = "1d"))]
    pub max_backoff: Duration,
    /// The factor by which the pause grows with each attempt.
    #[schemars(range(min = 1.0, max = 10.0))]
    pub multiplier: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            initial_backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            multiplier: 2.0,
        }
    }
}

/// The workflows that exist without any configuration.
#[must_use]
pub(super) fn compiled() -> BTreeMap<String, WorkflowConfig> {
    BTreeMap::from([("echo".to_owned(), WorkflowConfig::default())])
}

impl ConfigSection for BTreeMap<String, WorkflowConfig> {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        for (name, workflow) in self {
            workflow.validate(name, problems);
        }
    }
}

impl WorkflowConfig {
    fn validate(&self, name: &str, problems: &mut SectionProblems<'_, '_>) {
        let kind = format!("{name}.kind");
        match self.kind {
            Kind::Http => match self.url.as_deref().map(str::parse::<reqwest::Url>) {
                Some(Ok(url)) if matches!(url.scheme(), "http" | "https") => {}
                _ => problems.add_conflict(
                    &format!("{name}.url"),
                    &[&kind],
                    "a workflow of kind \"http\" needs url, such as url = \"https://example.org/run\"",
                ),
            },
            Kind::Temporal if self.workflow_type.is_none() => problems.add_conflict(
                &format!("{name}.workflow_type"),
                &[&kind],
                "a workflow of kind \"temporal\" needs workflow_type, the name its workers register",
            ),
            _ => {}
        }
    }

    /// The behaviour of the workflow.
    #[must_use]
    pub fn definition(&self) -> Workflow {
        match self.kind {
            Kind::Echo => Workflow::Echo { delay: self.delay },
            Kind::Http => Workflow::Http {
                url: self.url.clone().unwrap_or_default(),
                timeout: self.timeout,
                retry: StepRetry {
                    max_attempts: self.retry.max_attempts,
                    initial_backoff: self.retry.initial_backoff,
                    max_backoff: self.retry.max_backoff,
                    multiplier: self.retry.multiplier,
                },
                max_answer: self.max_answer.0,
            },
            Kind::Temporal => Workflow::Temporal {
                workflow_type: self.workflow_type.clone().unwrap_or_default(),
                task_queue: self.task_queue.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn a_workflow_has_what_its_kind_needs() {
        assert_eq!(problems_of("workflows", &compiled()), [""; 0]);
        let of_kind = |kind| WorkflowConfig { kind, ..WorkflowConfig::default() };
        let workflows = BTreeMap::from([
            ("a".to_owned(), of_kind(Kind::Http)),
            ("b".to_owned(), of_kind(Kind::Temporal)),
            ("c".to_owned(), of_kind(Kind::Echo)),
        ]);
        let told = problems_of("workflows", &workflows);
        let keys: Vec<&str> = told.iter().filter_map(|told| told.split(": ").next()).collect();
        assert_eq!(keys, ["workflows.a.url", "workflows.b.workflow_type"]);
    }
}
