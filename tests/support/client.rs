//! Requests to the program, and their answers.

use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use super::{DEADLINE, Service, eventually};

/// A client builder, after the process-wide setup that the first client needs.
pub(crate) fn http_client() -> ClientBuilder {
    agentarea_api::tls::install_provider();
    Client::builder()
}

impl Service {
    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    pub(crate) fn put(&self, path: &str) -> RequestBuilder {
        self.http.put(format!("{}{path}", self.base))
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        self.get(path).send().await.unwrap().json().await.unwrap()
    }

    /// Posts JSON; returns the status and the answer.
    pub(crate) async fn send(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.post(path).json(body)).await
    }

    /// Waits until `/health` meets the condition.
    pub(crate) async fn health(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            let health = self.json("/health").await;
            wanted(&health).then_some(health)
        })
        .await
    }

    /// Waits until it is healthy with every connection made.
    pub(crate) async fn healthy(&self) {
        let made = |health: &Value| {
            let services = health["connections"]["services"].as_object();
            services.is_some_and(|services| services.values().all(|state| state == "initialized"))
        };
        let wanted = |health: &Value| health["status"] == "healthy" && made(health);
        self.health("the service is healthy", wanted).await;
    }

    /// Starts an execution; returns its id.
    pub(crate) async fn execute(&self, body: &Value) -> String {
        let (status, execution) = self.send("/v1/executions", body).await;
        assert_eq!(status, 202, "{execution}");
        execution["id"].as_str().unwrap().to_owned()
    }

    /// Waits for an execution to end.
    pub(crate) async fn result(&self, id: &str) -> Value {
        let mut last = Value::Null;
        let ended = async || {
            last = self.json(&format!("/v1/executions/{id}?wait=5s")).await;
            let open = [json!("accepted"), json!("running"), Value::Null];
            (!open.contains(&last["status"])).then(|| last.clone())
        };
        match tokio::time::timeout(DEADLINE, eventually("the execution ends", ended)).await {
            Ok(execution) => execution,
            Err(elapsed) => panic!("the execution does not end, {elapsed}: {last}"),
        }
    }
}

/// Sends a request; returns the status and the answer.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// The value of a metric for events of the outbox.
pub(crate) async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let series = format!("{name}{{destination=\"event_broker\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("{series} is missing in\n{text}")).parse().unwrap()
}

/// Asserts a refusal because the outbox is full, with `Retry-After`.
pub(crate) async fn is_overloaded(response: Response) {
    assert_eq!(response.status(), 503);
    let seconds = response.headers()["retry-after"].to_str().unwrap().parse::<u64>();
    assert!(seconds.is_ok_and(|seconds| seconds >= 1));
    let problem: Value = response.json().await.unwrap();
    assert!(problem["type"].as_str().unwrap().ends_with("overloaded"), "{problem}");
}

/// An event of a client; `n` numbers the events of its subject.
pub(crate) fn cloud_event(subject: &str, n: usize) -> Value {
    json!({"specversion": "1.0", "id": format!("{subject}-{n}"), "source": "ledger", "type": "t",
        "subject": subject, "data": n})
}

pub(crate) async fn send_cloud_event(service: &Service, event: &Value) -> (u16, Value) {
    let request = service
        .post("/v1/events")
        .header("content-type", "application/cloudevents+json")
        .body(event.to_string());
    let (status, body) = answer(request).await;
    (status.as_u16(), body)
}
