//! Another session locks tables of the database.

use futures_util::future::join_all;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Database, Service, Setup, answer};

/// A session with a transaction that does not end.
struct Session {
    client: tokio_postgres::Client,
    connection: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl Session {
    async fn begin(database: &Database) -> Self {
        let (client, driver) =
            tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
        let mut connection = JoinSet::new();
        connection.spawn(driver);
        client.batch_execute("BEGIN").await.unwrap();
        Self { client, connection }
    }

    async fn lock(&self, what: &str) {
        self.client.batch_execute(&format!("LOCK TABLE {what}")).await.unwrap();
    }

    async fn end(mut self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
        drop(self.client);
        self.connection.join_next().await.unwrap().unwrap().unwrap();
    }
}

fn event(service: &Service) -> RequestBuilder {
    service.post("/v1/events").json(&json!({"type": "t"}))
}

fn execution(service: &Service) -> RequestBuilder {
    service.post("/v1/executions").json(&json!({"workflow": "echo"}))
}

/// Asserts a temporary refusal: nothing was done, and the client should retry.
async fn comes_too_early(request: RequestBuilder) {
    let response = request.send().await.unwrap();
    let (status, wait) = (response.status(), response.headers().get("retry-after").cloned());
    let problem: Value = response.json().await.unwrap();
    assert_eq!(status, 503, "{problem}");
    assert!(wait.is_some_and(|wait| wait.to_str().unwrap().parse::<u64>().unwrap() >= 1));
    assert!(problem["type"].as_str().unwrap().ends_with(":unavailable"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_get_503_while_others_lock_its_tables() {
    let database = Database::create().await;
    let service = Setup::new().variable("DATABASE_URL", &database.url).start().await;
    service.healthy().await;
    assert_eq!(answer(event(&service)).await.0, 202);

    let session = Session::begin(&database).await;
    session.lock("executions, outbox IN SHARE MODE").await;
    // Some requests share a commit and must not wait one after another.
    let events = join_all((0..20).map(|_| comes_too_early(event(&service))));
    let executions = join_all((0..20).map(|_| comes_too_early(execution(&service))));
    tokio::join!(events, executions);
    assert_eq!(answer(service.get("/v1/executions")).await.0, 200, "it may be read");
    session.end().await;
    assert_eq!(answer(event(&service)).await.0, 202);
    assert_eq!(answer(execution(&service)).await.0, 202);

    let session = Session::begin(&database).await;
    session.lock("executions, outbox, idempotency_keys IN ACCESS EXCLUSIVE MODE").await;
    let keyed = |request: RequestBuilder| request.header("Idempotency-Key", "mine");
    tokio::join!(
        comes_too_early(service.get("/v1/executions")),
        comes_too_early(service.get("/v1/dead-letters")),
        comes_too_early(keyed(event(&service))),
    );
    let connection = service.json("/v1/connections/database").await;
    assert_eq!(connection["circuit"], "closed", "the database is not to blame: {connection}");
    session.end().await;
    assert_eq!(answer(service.get("/v1/executions")).await.0, 200);
    assert_eq!(answer(keyed(event(&service))).await.0, 202);
    drop(service);
    database.drop().await;
}
