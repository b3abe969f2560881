//! One try of a workflow's step: what the embedded executor and the Temporal worker both run.

use std::time::Duration;

use serde_json::Value;

use crate::{model::executions::Workflow, telemetry::traces::TraceContext, tls};

/// Why a try failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepError {
    /// For the execution's `error`; names no credentials.
    pub(super) message: String,
    /// Whether another try can help.
    pub(super) retryable: bool,
}

impl StepError {
    fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: false }
    }

    fn temporary(message: impl Into<String>) -> Self {
        Self { message: message.into(), retryable: true }
    }
}

/// Runs steps; holds the HTTP connections they reuse.
#[derive(Clone, Debug)]
pub(super) struct Steps {
    http: reqwest::Client,
}

impl Steps {
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        tls::install_provider();
        let http = reqwest::Client::builder()
            .user_agent(concat!("agentarea-api/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(5))
            .redirect(reqwest::redirect::Policy::limited(3))
            .build()?;
        Ok(Self { http })
    }

    /// Runs one try of `workflow` for the execution `id`, as part of the trace that `traceparent`
    /// names.
    ///
    /// # Cancel safety
    /// A dropped try may have been sent; the next one carries the same `Idempotency-Key`.
    pub(super) async fn run(
        &self,
        id: &str,
        traceparent: Option<&str>,
        workflow: &Workflow,
        input: &Value,
    ) -> Result<Value, StepError> {
        match workflow {
            Workflow::Echo { delay } => {
                if !delay.is_zero() {
                    tokio::time::sleep(*delay).await;
                }
                Ok(input.clone())
            }
            Workflow::Http { url, timeout, .. } => {
                let trace = TraceContext::continued(traceparent);
                self.post(id, trace, url, *timeout, input).await
            }
            Workflow::Temporal { .. } => Err(StepError::permanent(
                "this workflow runs on Temporal only, and the execution service is another one",
            )),
        }
    }

    async fn post(
        &self,
        id: &str,
        trace: TraceContext,
        url: &str,
        timeout: Duration,
        input: &Value,
    ) -> Result<Value, StepError> {
        let request = self
            .http
            .post(url)
            .header("idempotency-key", format!("\"{id}\""))
            .header("traceparent", trace.to_string())
            .timeout(timeout)
            .json(input);
        let answer = request.send().await.map_err(|error| request_error(&error))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| request_error(&error))?;
        if status.is_success() {
            return serde_json::from_str(&text)
                .map_err(|error| StepError::permanent(format!("the answer is not JSON: {error}")));
        }
        let shown: String = text.chars().take(200).collect();
        let message = format!("the service answered {status}: {shown}");
        let worth_trying =
            status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429);
        Err(if worth_trying {
            StepError::temporary(message)
        } else {
            StepError::permanent(message)
        })
    }
}

fn request_error(error: &reqwest::Error) -> StepError {
    let what = if error.is_timeout() {
        "no answer in time"
    } else if error.is_connect() {
        "the service cannot be reached"
    } else {
        "the request failed"
    };
    StepError::temporary(what)
}
