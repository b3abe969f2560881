//! Tests on a real server.

mod over_tls;
#[cfg(feature = "worker")]
mod workers;

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{
    backends::test_server::{SecretFile, far, variable},
    config::Pool,
    error::RetryClass,
    model::executions::Workflow,
    telemetry::metrics::Metrics,
};

const DEADLINE: Duration = Duration::from_mins(1);

/// The server that the tests use, `host:port`.
fn address() -> String {
    far(&variable("TEST_TEMPORAL_ADDRESS"))
}

/// Settings with a task queue that no other test uses.
fn config(address: &str) -> Config {
    let mut config = Config::at(address);
    config.task_queue = format!("test-{}", ids::new_id());
    config
}

fn section(config: &Config) -> Section {
    Section(serde_json::to_value(config).unwrap())
}

async fn connected(config: &Config) -> Result<Temporal, Error> {
    let (limits, login) = (Limits::of(&Pool::default()), config.login()?);
    let connection = connect(config, &login, "test", &limits, RetryOptions::no_retries()).await?;
    let retention = Mutex::default();
    Ok(Temporal { connection, login, config: config.clone(), identity: "test".into(), retention })
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
        input: input.into(),
        timeout: Some(DEADLINE * 2),
        traceparent: None,
        first_tried: None,
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
        tasks: crate::tasks::Tasks::default(),
        closing: CancellationToken::new(),
    };
    let service = Factory.build(&section(&config(&address())), &context).await.unwrap();
    service.probe().await.unwrap();
}

#[tokio::test]
async fn causes_of_a_failed_connect_are_distinguished() {
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

    /// Forwards everything that `work` sends.
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
        let request = StartRequest { input: json!("x".repeat(size)).into(), ..idle_request() };
        let error = temporal.start(&request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}

#[tokio::test]
async fn a_run_carries_the_trace_of_the_request_that_starts_it() {
    let service = connected(&config(&address())).await.unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = StartRequest { traceparent: Some(trace.to_owned()), ..idle_request() };
    let message = service.start_message(&request).unwrap();
    let context = &message.header.unwrap().fields["_tracer-data"].data;
    let context: Value = serde_json::from_slice(context).unwrap();
    assert_eq!(context["traceparent"], trace);
    let step = super::start::argument(&request);
    assert_eq!(step.traceparent.as_deref(), Some(trace), "for the requests of the worker's steps");
    let untraced = service.start_message(&idle_request()).unwrap();
    assert!(untraced.header.is_none());
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
    let signal = temporal.signal(&request.id, "wake", &Json::null()).await;
    assert_eq!(signal.unwrap_err().kind(), ErrorKind::NotFound);
    let query = temporal.query(&request.id, "state", &Json::null()).await;
    assert_eq!(query.unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// A proxy in front of the server that accepts only calls with the right key.
async fn doorkeeper(right: Arc<Mutex<String>>) -> String {
    use temporalio_client::tonic::{body::Body, client::GrpcService, transport::Endpoint};
    let server = format!("http://{}", address());
    let channel = Endpoint::from_shared(server).unwrap().connect().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serve = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let shown = request.headers().get("authorization").cloned();
        let wanted = format!("Bearer {}", right.lock());
        let mut channel = channel.clone();
        async move {
            if shown.is_none_or(|shown| shown != wanted.as_str()) {
                let refused = hyper::Response::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-status", (Code::Unauthenticated as i32).to_string())
                    .body(Body::empty());
                return Ok(refused.unwrap());
            }
            std::future::poll_fn(|context| GrpcService::poll_ready(&mut channel, context)).await?;
            GrpcService::call(&mut channel, request.map(Body::new)).await
        }
    });
    TaskTracker::new().spawn(async move {
        let guests = TaskTracker::new();
        while let Ok((link, _)) = listener.accept().await {
            let guest = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(link), serve.clone());
            guests.spawn(async move { guest.await.is_ok() });
        }
    });
    at.to_string()
}

#[tokio::test]
async fn an_api_key_rotates_without_a_failed_call() {
    let right = Arc::new(Mutex::new("key-0".to_owned()));
    let file = SecretFile::new("key-0");
    let mut config = config(&doorkeeper(Arc::clone(&right)).await);
    // Over plain HTTP, which only the check of the settings rules out.
    config.api_key = Some(serde_json::from_value(file.value()).unwrap());
    let temporal = connected(&config).await.unwrap();
    let request = idle_request();
    temporal.start(&request).await.unwrap();
    let (calls, stop) = (AtomicUsize::new(0), CancellationToken::new());
    let rotation = async {
        for n in 1..=10 {
            let key = format!("key-{n}");
            file.write(&key);
            *right.lock() = key;
            let (before, begin) = (calls.load(Ordering::Relaxed), Instant::now());
            while calls.load(Ordering::Relaxed) < before + 20 {
                assert!(begin.elapsed() < DEADLINE, "calls do not go on");
                sleep(Duration::from_millis(1)).await;
            }
            temporal.probe().await.unwrap();
        }
        stop.cancel();
    };
    let load = (0..4).map(async |_| {
        while !stop.is_cancelled() {
            temporal.describe(&request.id).await.unwrap();
            calls.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::join!(futures_util::future::join_all(load), rotation);
    temporal.terminate(&request.id, "done").await.unwrap();

    *right.lock() = "another".to_owned();
    let error = temporal.describe(&request.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    let error = refusal(&config).await;
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
}
