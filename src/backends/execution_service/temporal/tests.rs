//! On a real server.

mod over_tls;
#[cfg(feature = "worker")]
mod workers;

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{
    config::Pool, error::RetryClass, model::executions::Workflow, telemetry::metrics::Metrics,
};

const DEADLINE: Duration = Duration::from_mins(1);

/// The server that the tests use, `host:port`.
fn address() -> String {
    #[expect(clippy::disallowed_methods, reason = "the environment says where the server is")]
    std::env::var("TEST_TEMPORAL_ADDRESS").expect(
        "TEST_TEMPORAL_ADDRESS must name a Temporal server: run `scripts/servers start \
         DIR` and `source DIR/env`; the program comes with \
         `go install github.com/temporalio/cli/cmd/temporal@v1.5.1`",
    )
}

/// With a task queue that no other test uses.
fn config(address: &str) -> Config {
    let mut config = Config::at(address);
    config.task_queue = format!("test-{}", ids::new_id());
    config
}

fn section(config: &Config) -> Section {
    Section(serde_json::to_value(config).unwrap())
}

async fn connected(config: &Config) -> Result<Temporal, Error> {
    let limits = Limits::of(&Pool::default());
    let connection = connect(config, "test", &limits, RetryOptions::no_retries()).await?;
    Ok(Temporal { connection, config: config.clone(), identity: "test".into() })
}

async fn refusal(config: &Config) -> Error {
    connected(config).await.expect_err("the connection cannot be made")
}

fn request_of(definition: Workflow, input: Value) -> StartRequest {
    StartRequest {
        id: ids::new_id(),
        request_id: ids::new_id(),
        workflow: "test".to_owned(),
        definition,
        input,
        timeout: Some(DEADLINE * 2),
    }
}

/// An execution that no worker will touch.
fn idle_request() -> StartRequest {
    let workflow_type = "Nobody".to_owned();
    request_of(Workflow::Temporal { workflow_type, task_queue: None }, json!(1))
}

#[tokio::test]
async fn the_factory_builds_what_its_section_says() {
    let context = BuildContext {
        connection: FAMILY,
        instance: "test".into(),
        pool: Pool::default(),
        metrics: Metrics::new("0", "0").connection(FAMILY),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
    };
    let service = Factory.build(&section(&config(&address())), &context).await.unwrap();
    service.probe().await.unwrap();
}

#[tokio::test]
async fn what_keeps_us_from_connecting_is_told_apart() {
    for (address, kind) in [
        ("127.0.0.1:1", ErrorKind::Refused),
        ("temporal.invalid:7233", ErrorKind::NameNotFound),
        (&format!("https://{}", address()), ErrorKind::Tls),
    ] {
        let error = refusal(&config(address)).await;
        assert_eq!((error.kind(), error.retry()), (kind, RetryClass::NotSent), "{error}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = refusal(&config(&silent.local_addr().unwrap().to_string())).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, RetryClass::NotSent));
    let mut elsewhere = config(&address());
    elsewhere.namespace = "nowhere".to_owned();
    let error = refusal(&elsewhere).await;
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.message().contains("temporal operator namespace create -n nowhere"));
}

#[tokio::test]
async fn a_namespace_that_went_away_is_not_a_lost_execution() {
    let mut temporal = connected(&config(&address())).await.unwrap();
    temporal.config.namespace = "nowhere".to_owned();
    assert_eq!(temporal.describe("any").await.unwrap_err().kind(), ErrorKind::Missing);
    assert_eq!(temporal.probe().await.unwrap_err().kind(), ErrorKind::Missing);
}

/// A TCP link to the server that can be cut.
struct Link {
    listener: TcpListener,
    connections: JoinSet<std::io::Result<(u64, u64)>>,
}

impl Link {
    async fn open(at: &str) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        Self { listener, connections: JoinSet::new() }
    }

    fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Carries whatever `work` sends.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let carry = async {
            loop {
                let (mut near, _) = self.listener.accept().await.unwrap();
                let mut far = TcpStream::connect(address()).await.unwrap();
                self.connections
                    .spawn(async move { copy_bidirectional(&mut near, &mut far).await });
            }
        };
        tokio::select! {
            done = work => done,
            () = carry => unreachable!("it is carried for ever"),
        }
    }
}

#[tokio::test]
async fn the_connection_heals_by_itself() {
    let mut link = Link::open("127.0.0.1:0").await;
    let at = link.address();
    let request = idle_request();
    let temporal = link.during(connected(&config(&at))).await.unwrap();
    link.during(temporal.start(&request)).await.unwrap();

    let waiting = temporal.result(&request.id, DEADLINE);
    let cutting = async {
        sleep(Duration::from_millis(200)).await;
        drop(link);
    };
    let (waited, ()) = tokio::join!(waiting, cutting);
    let error = waited.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Disconnected, RetryClass::MaybeSent));

    let begin = Instant::now();
    let error = temporal.start(&request).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Refused, RetryClass::NotSent));
    assert!(begin.elapsed() < Duration::from_secs(1), "an outage fails calls at once");

    let mut link = Link::open(&at).await;
    link.during(temporal.start(&request)).await.unwrap();
    link.during(temporal.terminate(&request.id, "done")).await.unwrap();
}

#[tokio::test]
async fn an_input_that_is_too_large_is_no_outage() {
    let temporal = connected(&config(&address())).await.unwrap();
    // Above the server's limit of one value, and above gRPC's limit of one message.
    for size in [3 << 20, 5 << 20] {
        let request = StartRequest { input: json!("x".repeat(size)), ..idle_request() };
        let error = temporal.start(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

#[tokio::test]
async fn a_wait_without_a_worker_ends_in_time() {
    let temporal = connected(&config(&address())).await.unwrap();
    let request = idle_request();
    temporal.start(&request).await.unwrap();
    let begin = Instant::now();
    let waited = temporal.result(&request.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(waited.outcome.status, Status::Running);
    assert!(begin.elapsed() < Duration::from_secs(5));
    temporal.terminate(&request.id, "done").await.unwrap();
    let signal = temporal.signal(&request.id, "wake", &Value::Null).await;
    assert_eq!(signal.unwrap_err().kind(), ErrorKind::NotFound);
    let query = temporal.query(&request.id, "state", &Value::Null).await;
    assert_eq!(query.unwrap_err().kind(), ErrorKind::InvalidInput);
}
