//! How our service learns that executions have ended.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    Bench, Comparison, DatabaseKind, Report,
    comparison::alone,
    figures::{Figures, median, number},
    frontend::Frontend,
    load::Until,
    ours::{EXECUTIONS, Ours, Start, reaches},
    rows::CLIENTS,
    usage::Meter,
};

const ENDED: usize = 20_000;
const RUNNING: usize = 5000;
/// Longer than the time until an execution that nobody has looked at is stale.
const WATCHED_SECONDS: u64 = 90;
/// The starts a second that the service achieves at least, so that none ends before all are started.
const SLOWEST: f64 = 400.0;
/// The pause between two lists of all running executions, and between two looks at one.
const LIST: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// The executions that are terminated, one after another.
const TERMINATED: usize = 10;
/// `executions.follow_interval`, as shipped.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);

const STORED: &str = "endings stored a second";
const STALE: &str = "stale at most";
const SEEN: &str = "follow intervals until an ending is seen";

pub(super) async fn measure(bench: &Bench, database: DatabaseKind, report: &mut Report) {
    let row = |name: &str, shares, rounds| Comparison {
        name: name.to_owned(),
        database,
        ours: "ours",
        peer: None,
        shares,
        rounds,
    };
    let rounds = bench.arguments.rounds;
    let name = "endings, many at once";
    let measured = alone(name, rounds, async || ended_at_once(bench, database).await).await;
    report.add(&row(name, &[STORED], measured));
    let name = "endings, many running";
    let measured = alone(name, rounds, async || running(bench, database).await).await;
    report.add(&row(name, &[STALE, SEEN], measured));
}

/// The service cannot reach the stub until all executions have ended there.
async fn ended_at_once(bench: &Bench, database: DatabaseKind) -> Figures {
    let count = bench.arguments.count(ENDED);
    let end_after = Duration::from_secs(2) + Duration::from_secs_f64(number(count) / SLOWEST);
    let stub = bench.peers.stub(Some(&format!("{}ms", end_after.as_millis()))).await;
    let ours = Ours::start(Start::new(database, &stub.address)).await;
    started(bench, &ours, count).await;
    ours.hold("execution_service", true).await;
    let before = ours.completed().await;
    sleep(end_after).await;
    let meter = Meter::start(&[ours.watched(), vec![stub.watched()]].concat());
    ours.hold("execution_service", false).await;
    reaches(number(count), async || ours.completed().await).await;
    let used = meter.stop();
    let stored = number(count) - before;
    Figures::default()
        .with(STORED, stored / used.seconds)
        .with("endings", stored)
        .with_costs(&used, stored)
}

async fn started(bench: &Bench, ours: &Ours, count: usize) {
    let clients = bench.arguments.clients(CLIENTS);
    ours.accept(EXECUTIONS, clients, Until::Succeeded(count)).await;
    reaches(number(count), async || ours.started().await).await;
}

/// No worker runs, so the executions do not end by themselves.
async fn running(bench: &Bench, database: DatabaseKind) -> Figures {
    let temporal = Frontend::temporal().await;
    let ours = Ours::start(Start::new(database, &temporal.address)).await;
    let count = bench.arguments.count(RUNNING);
    started(bench, &ours, count).await;
    let meter = Meter::start(&[ours.watched(), vec![temporal.watched()]].concat());
    let (begin, mut stale) = (Instant::now(), Vec::new());
    let lasts = bench.arguments.lasts(WATCHED_SECONDS);
    while begin.elapsed() < lasts {
        stale.push(number(stale_ones(&ours).await));
        sleep(LIST).await;
    }
    let watched = meter.stop();
    let delays = endings_seen(&ours, &temporal).await;
    let worst = delays.iter().copied().fold(0.0, f64::max);
    let median = median(delays);
    Figures::default()
        .with("running", number(count))
        .with(STALE, stale.iter().copied().fold(0.0, f64::max))
        .with("stale at the end", stale.last().copied().unwrap_or_default())
        .with("lists", number(stale.len()))
        .with("seconds until an ending is seen", median)
        .with("seconds until an ending is seen, at most", worst)
        .with(SEEN, median / FOLLOW_INTERVAL.as_secs_f64())
        .with("CPU of the service, % of a core", watched.share_of_a_core("the service") * 100.0)
        .with("CPU of Temporal, % of a core", watched.share_of_a_core("Temporal") * 100.0)
        .with_machine(&watched)
}

/// Counts them in the list of all running executions.
async fn stale_ones(ours: &Ours) -> usize {
    let first = "/v1/executions?status=running&limit=200".to_owned();
    let (mut stale, mut page) = (0, Some(first.clone()));
    while let Some(path) = page {
        let list = ours.json(&path).await;
        let items = list["items"].as_array().expect("a list has items");
        stale += items.iter().filter(|execution| execution["stale"] == true).count();
        page = list["next_cursor"].as_str().map(|cursor| format!("{first}&cursor={cursor}"));
    }
    stale
}

/// Terminates executions behind the service's back. Returns the seconds from each termination,
/// when the command has returned, until the service shows it.
async fn endings_seen(ours: &Ours, temporal: &Frontend) -> Vec<f64> {
    let list = ours.json(&format!("/v1/executions?status=running&limit={TERMINATED}")).await;
    let mut delays = Vec::new();
    for execution in list["items"].as_array().expect("a list has items") {
        let id = execution["id"].as_str().expect("an execution has an id");
        assert!(temporal.ask(&["workflow", "terminate", "--workflow-id", id]), "{id} terminates");
        let begin = Instant::now();
        while status(ours, id).await != json!("terminated") {
            sleep(LOOK).await;
        }
        delays.push(begin.elapsed().as_secs_f64());
    }
    delays
}

async fn status(ours: &Ours, id: &str) -> Value {
    ours.json(&format!("/v1/executions/{id}")).await["status"].take()
}
