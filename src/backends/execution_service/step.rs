//! One try of a workflow's step: what the embedded executor and the Temporal worker both run.

use std::time::Duration;

use reqwest::{Response, StatusCode, header::CONTENT_TYPE, redirect};

use crate::{
    config::values::Size,
    model::{executions::Workflow, json::Json},
    telemetry::traces::TraceContext,
    tls,
};

/// How much of a service's own words about a failure is logged, in characters.
const MAX_SHOWN: usize = 200;

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
            // The input and the URL's secrets are for the configured service alone, wherever it
            // would send us.
            .redirect(redirect::Policy::none())
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
        input: &Json,
    ) -> Result<Json, StepError> {
        match workflow {
            Workflow::Echo { delay } => {
                if !delay.is_zero() {
                    tokio::time::sleep(*delay).await;
                }
                Ok(input.clone())
            }
            Workflow::Http { url, timeout, max_answer, .. } => {
                let trace = TraceContext::continued(traceparent);
                let answer = self.post(id, trace, url, *timeout, input).await?;
                let text = read(answer, *max_answer).await?;
                Json::read(&text)
                    .map_err(|problem| StepError::permanent(format!("the answer {problem}")))
            }
            Workflow::Temporal { .. } => Err(StepError::permanent(
                "this workflow runs on Temporal only, and the execution service is another one",
            )),
        }
    }

    /// Gives the answer of success, whose body is still to be read.
    async fn post(
        &self,
        id: &str,
        trace: TraceContext,
        url: &str,
        timeout: Duration,
        input: &Json,
    ) -> Result<Response, StepError> {
        let request = self
            .http
            .post(url)
            .header("idempotency-key", format!("\"{id}\""))
            .header("traceparent", trace.to_string())
            .timeout(timeout)
            .header(CONTENT_TYPE, "application/json")
            .body(input.text().to_owned());
        let answer = request.send().await.map_err(|error| request_error(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(refusal(id, answer).await)
    }
}

/// Reads an answer to its end, and holds no more of it than `bound`.
async fn read(mut answer: Response, bound: usize) -> Result<Vec<u8>, StepError> {
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| request_error(&error))? {
        if chunk.len() > bound - text.len() {
            let bound = Size(bound);
            let message = format!("the answer is larger than {bound}, the workflow's max_answer");
            return Err(StepError::permanent(message));
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// What an answer without success means. Its text is written for the owner of this service and can
/// hold anything, so that it never gets into the execution, which others may read.
async fn refusal(id: &str, mut answer: Response) -> StepError {
    let status = answer.status();
    if tracing::enabled!(tracing::Level::DEBUG) {
        let begin = answer.chunk().await.ok().flatten().unwrap_or_default();
        let text: String = String::from_utf8_lossy(&begin).chars().take(MAX_SHOWN).collect();
        tracing::debug!(execution = id, %status, text, "the service of a workflow refuses a step");
    }
    if status.is_redirection() {
        return StepError::permanent(format!(
            "the service answered {status}, and no redirect is followed; the workflow's url has to \
             be that of the service itself"
        ));
    }
    let message = format!("the service answered {status}");
    if is_passing(status) { StepError::temporary(message) } else { StepError::permanent(message) }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 409 | 425 | 429)
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

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use serde_json::json;

    use super::*;
    use crate::model::{executions::StepRetry, json};

    const BOUND: usize = 2048;

    /// A service that reads one request and answers with `answer`.
    fn service(answer: impl FnOnce(TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let _read = stream.read(&mut head).unwrap();
            answer(stream);
        });
        format!("http://{address}/run?key=hunter2")
    }

    fn answering(text: String) -> String {
        service(move |mut stream| stream.write_all(text.as_bytes()).unwrap())
    }

    async fn run(url: String) -> Result<Json, StepError> {
        let retry = StepRetry {
            max_attempts: 1,
            initial_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            multiplier: 1.0,
        };
        let timeout = Duration::from_secs(30);
        let workflow = Workflow::Http { url, timeout, retry, max_answer: BOUND };
        Steps::new().unwrap().run("id", None, &workflow, &json!({"secret": 1}).into()).await
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed_and_not_told() {
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let place = format!("http://{}/other?token=hunter3", elsewhere.local_addr().unwrap());
        for status in ["301 Moved Permanently", "307 Temporary Redirect"] {
            let head =
                format!("HTTP/1.1 {status}\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n");
            let StepError { message, retryable } = run(answering(head)).await.unwrap_err();
            assert!(!retryable, "{message}");
            assert!(message.contains(status) && message.contains("redirect"), "{message}");
            for secret in ["hunter", "other", "127.0.0.1"] {
                assert!(!message.contains(secret), "{message}");
            }
        }
        let called = elsewhere.accept().map(|_| ()).map_err(|error| error.kind());
        assert_eq!(called, Err(ErrorKind::WouldBlock), "the other host was called");
    }

    #[tokio::test]
    async fn an_answer_beyond_its_bound_is_not_read_on() {
        let endless = service(|mut stream| {
            let _head = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n[").is_ok();
            // Ends only when the reader hangs up.
            while stream.write_all(b"1,").is_ok() {}
        });
        let StepError { message, retryable } = run(endless).await.unwrap_err();
        assert!(!retryable, "{message}");
        assert!(message.contains("2KiB") && message.contains("max_answer"), "{message}");
        let largest = json!("x".repeat(BOUND - 2));
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BOUND}\r\n\r\n{largest}");
        assert_eq!(run(answering(head)).await, Ok(largest.into()));
    }

    #[tokio::test]
    async fn an_answer_is_taken_a_hundred_deep_and_refused_deeper() {
        let answer = |levels: usize| {
            let json = "[".repeat(levels) + &"]".repeat(levels);
            let length = json.len();
            answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{json}"))
        };
        assert!(run(answer(json::MAX_DEPTH)).await.is_ok());
        let error = run(answer(json::MAX_DEPTH + 1)).await.unwrap_err();
        let message = "the answer is nested deeper than 100 levels".to_owned();
        assert_eq!(error, StepError { message, retryable: false });
    }

    #[tokio::test]
    async fn what_a_service_says_of_its_failure_is_not_told() {
        for (status, passing) in [("500 Internal Server Error", true), ("403 Forbidden", false)] {
            let body = "user admin has password hunter2";
            let length = body.len();
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
            let error = run(answering(text)).await.unwrap_err();
            let message = format!("the service answered {status}");
            assert_eq!(error, StepError { message, retryable: passing });
        }
    }
}
