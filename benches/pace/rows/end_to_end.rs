//! Executions from the request until they are completed by a worker.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hyper::{Method, body::Bytes};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Bench, Comparison, DatabaseKind,
    comparison::in_pairs,
    figures::{FAILED, Figures, P50, P99, number},
    frontend::Frontend,
    load::{self, Answer, Connection, Until},
    ours::{EXECUTIONS, INPUT, Ours, Start, setup},
    rows::CLIENTS,
    support::Process,
    usage::{Meter, Watched},
};

const SECONDS: u64 = 30;
const COMPLETED: &str = "completed a second";
/// How long a client waits at once for its execution to end.
const WAIT: &str = "30s";

pub(super) async fn compare(bench: &Bench, database: DatabaseKind) -> Comparison {
    let go = build();
    let rounds = in_pairs(
        "end-to-end",
        bench.arguments.rounds,
        async || ours(bench, database).await,
        async || with_the_sdk(bench, &go).await,
    );
    Comparison {
        name: "end-to-end".to_owned(),
        database,
        ours: "ours",
        peer: Some("Go client and worker"),
        shares: &[COMPLETED, P50, P99],
        rounds: rounds.await,
    }
}

/// Builds the Go program of `benches/end_to_end`.
fn build() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("end-to-end");
    let mut command = Command::new("go");
    command
        .args(["build", "-trimpath", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/end_to_end"));
    let status = command.status().expect("Go is installed");
    assert!(status.success(), "benches/end_to_end is built");
    program
}

async fn ours(bench: &Bench, database: DatabaseKind) -> Figures {
    let temporal = Frontend::temporal().await;
    let ours = Ours::start(Start::new(database, &temporal.address)).await;
    let worker = setup(Some(&temporal.address)).argument("worker").launch();
    let (lasts, clients) = (bench.arguments.lasts(SECONDS), bench.arguments.clients(CLIENTS));
    // The first one shows that the worker runs.
    load::run(ours.host(), 1, Until::Succeeded(1), complete_one).await;
    let worker_id = Watched { name: "the worker", id: worker.child.id() };
    let others = vec![worker_id, temporal.watched()];
    let meter = Meter::start(&[ours.watched(), others].concat());
    let sent = load::run(ours.host(), clients, Until::Elapsed(lasts), complete_one).await;
    let used = meter.stop();
    Figures::default()
        .with(COMPLETED, sent.per_second())
        .with_latency(&sent)
        .with_costs(&used, number(sent.succeeded))
}

/// Posts an execution and waits until it is completed.
async fn complete_one(connection: &mut Connection, _client: usize) -> Answer {
    let body = Bytes::from(format!(r#"{{"workflow":"echo","input":{INPUT}}}"#));
    let (status, answer) = connection.send(Method::POST, EXECUTIONS, body).await;
    if status != 202 {
        return Answer::of(status, 202);
    }
    let accepted: Value = serde_json::from_slice(&answer).expect("JSON");
    let id = accepted["id"].as_str().expect("an execution has an id");
    let path = format!("{EXECUTIONS}/{id}?wait={WAIT}");
    let (status, answer) = connection.send(Method::GET, &path, Bytes::new()).await;
    let ended: Value = serde_json::from_slice(&answer).expect("JSON");
    match Answer::of(status, 200) {
        Answer::Success if ended["status"] != "completed" => Answer::Failure,
        answer => answer,
    }
}

/// The answer of the Go client.
#[derive(Debug, Deserialize)]
struct Client {
    completed: u32,
    errors: u32,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    cpu_seconds: f64,
}

/// A client and a worker of Temporal's Go SDK, both as it is configured by default.
async fn with_the_sdk(bench: &Bench, program: &Path) -> Figures {
    let temporal = Frontend::temporal().await;
    let mut worker = Command::new(program);
    worker.args(["-address", &temporal.address, "worker"]).stderr(Stdio::null());
    let worker = Process::start(&mut worker, "it was built just now");
    let (lasts, clients) = (bench.arguments.lasts(SECONDS), bench.arguments.clients(CLIENTS));
    let mut client = tokio::process::Command::new(program);
    client
        .args(["-address", &temporal.address, "-clients", &clients.to_string(), "-lasts"])
        .args([&format!("{}ms", lasts.as_millis()), "-input", INPUT, "client"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let watched = [Watched { name: "the worker", id: worker.id() }, temporal.watched()];
    let meter = Meter::start(&watched);
    let output = client.output().await.expect("the client runs");
    let used = meter.stop();
    let error = String::from_utf8_lossy(&output.stderr);
    let client: Client =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("Go client: {error}"));
    let count = number(client.completed);
    Figures::default()
        .with(COMPLETED, count / client.seconds)
        .with(P50, client.p50_ms)
        .with(P99, client.p99_ms)
        .with(FAILED, number(client.errors))
        .with("CPU of the client, µs each", client.cpu_seconds * 1e6 / count.max(1.0))
        .with_costs(&used, count)
}
