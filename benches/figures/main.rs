//! The figures of `docs/performance.md`, measured on the program itself:
//! `cargo bench --bench figures`. Its curves: `cargo bench --bench figures -- curves`.
//!
//! Figures that need servers use the ones that `scripts/servers start DIR` starts. They are left
//! out, by name, when `source DIR/env` was forgotten.

mod accept;
mod chart;
mod curves;
mod own_commit;
mod program;
#[expect(dead_code, unused_imports, clippy::unwrap_used, reason = "the tests use the rest")]
#[path = "../../tests/support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use agentarea_api::{
    api::{Bound, behind_edge, serve},
    app::App,
    config::Config,
};
use poem::{Endpoint, Request, Response};
use reqwest::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::{
    program::{bare, ready, setup},
    support::Service,
};

/// Tells a second process of this program to serve the bare handler.
const BARE: &str = "FIGURES_BARE";
/// The variables that `scripts/servers` sets.
const SERVERS: [&str; 3] = ["TEST_REDIS_URL", "TEST_DATABASE_URL", "TEST_TEMPORAL_ADDRESS"];
const RUNS: usize = 7;
const REQUESTS: usize = 20_000;
const PARALLEL: usize = 16;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if variable(BARE).is_some() {
        return runtime.block_on(serve_bare());
    }
    agentarea_api::tls::install_provider();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let asked = |word: &str| arguments.iter().any(|argument| argument == word);
    if asked("curves") {
        let [Some(redis), Some(_database), Some(temporal)] = SERVERS.map(variable) else {
            eprintln!("no servers: run `scripts/servers start DIR` and `source DIR/env`");
            std::process::exit(1);
        };
        let servers = curves::Servers { redis, temporal };
        return runtime.block_on(curves::curves(&servers, asked("short")));
    }
    runtime.block_on(async {
        start_to_ready().await;
        health_against_bare().await;
        health_in_an_outage().await;
        thousand_followers().await;
        let [Some(redis), Some(database), Some(temporal)] = SERVERS.map(variable) else {
            println!("left out, no servers: accept, idle-rss, first-requests");
            return;
        };
        accept::figures(&redis).await;
        idle_memory(&redis, &database, &temporal).await;
        first_requests(&redis).await;
    });
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is told where the servers are")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A handler that does nothing, behind the same accept loop and middleware.
struct Bare;

impl Endpoint for Bare {
    type Output = Response;

    async fn call(&self, _request: Request) -> poem::Result<Response> {
        Ok(Response::builder().content_type("application/json").body("{\"status\":\"healthy\"}"))
    }
}

async fn serve_bare() {
    let mut config = Config::default();
    config.server.host = [127, 0, 0, 1].into();
    config.server.port = 0;
    let state = App::default().state(Arc::new(config));
    let bound = Bound::new(&state.config.server).expect("a free port");
    eprintln!("listening on http://{}", bound.address);
    let never = CancellationToken::new();
    serve(bound, behind_edge(&state, Bare), never, Duration::ZERO).await;
}

async fn start_to_ready() {
    let mut all = Vec::new();
    for _ in 0..RUNS {
        let begin = Instant::now();
        let server = setup(&[]).launch();
        server.ready().await;
        all.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!("start-to-ready: {:.0} ms (median of {RUNS})", median(all));
}

/// The processor time of one request, in microseconds.
async fn cost(server: &Service, http: &Client) -> f64 {
    let before = server.ticks();
    let one = || async {
        for _ in 0..REQUESTS / PARALLEL {
            let answer =
                http.get(format!("{}/health", server.base)).send().await.expect("an answer");
            answer.bytes().await.expect("a body");
        }
    };
    futures_util::future::join_all((0..PARALLEL).map(|_| one())).await;
    #[expect(clippy::cast_precision_loss, reason = "a few hundred ticks")]
    let ticks = (server.ticks() - before) as f64;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand requests")]
    let requests = REQUESTS as f64;
    ticks * 10_000.0 / requests
}

async fn health_against_bare() {
    let (bare, real) = (bare().await, ready(&[]).await);
    let http = Client::new();
    let (mut bare_cost, mut real_cost) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare_cost.push(cost(&bare, &http).await);
        real_cost.push(cost(&real, &http).await);
    }
    let (bare, real) = (median(bare_cost), median(real_cost));
    println!(
        "health-vs-bare: {:.2} (bare {bare:.1} µs, /health {real:.1} µs of CPU per request)",
        bare / real
    );
}

async fn health_in_an_outage() {
    // Nothing listens at this address.
    let outage = [("REDIS_URL", "redis://127.0.0.1:1")];
    let well = health_under_load(&[], "healthy").await;
    let down = health_under_load(&outage, "degraded").await;
    for (what, figures) in [("the event broker down", down), ("all well", well)] {
        println!(
            "health-in-outage: with {what}, under the load of {PARALLEL} clients, {:.2} % handled \
             within 1 ms, p99 seen by the client {:.2} ms",
            figures.share_within_1_ms * 100.0,
            figures.client_p99_ms
        );
    }
}

struct HealthFigures {
    client_p99_ms: f64,
    /// The share of requests for which the handler itself took at most 1 ms.
    share_within_1_ms: f64,
}

/// Requests `/health` while other clients publish as fast as they can.
async fn health_under_load(variables: &[(&str, &str)], status: &str) -> HealthFigures {
    let server = ready(variables).await;
    let http = Client::new();
    let health = async || {
        let answer = http.get(format!("{}/health", server.base)).send().await.expect("an answer");
        answer.json::<Value>().await.expect("JSON")
    };
    while health().await["status"] != status {
        tokio::task::yield_now().await;
    }
    let measured = CancellationToken::new();
    let load = || async {
        while !measured.is_cancelled() {
            server.status_of("/v1/events?delivery=direct", &json!({"type": "t"})).await;
        }
    };
    let measure = async {
        let mut took = Vec::new();
        for _ in 0..5000 {
            let begin = Instant::now();
            health().await;
            took.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        measured.cancel();
        took.sort_by(f64::total_cmp);
        took[took.len() * 99 / 100]
    };
    let load = futures_util::future::join_all((0..PARALLEL).map(|_| load()));
    let (client_p99_ms, _) = tokio::join!(measure, load);
    let metrics = http.get(format!("{}/metrics", server.base)).send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    let within = |bound: &str| {
        let mut buckets = metrics.lines().filter(|line| {
            line.starts_with("agentarea_http_request_seconds_bucket")
                && line.contains("route=\"/health\"")
                && line.contains(&format!("le=\"{bound}\""))
        });
        let value = buckets.next().and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
        value.unwrap_or(0.0)
    };
    HealthFigures { client_p99_ms, share_within_1_ms: within("0.001") / within("+Inf") }
}

async fn thousand_followers() {
    const CLIENTS: usize = 1000;
    const EVENTS: usize = 1000;
    let server = ready(&[]).await;
    let http = Client::new();
    let mut followers = Vec::new();
    for _ in 0..CLIENTS {
        let stream = http.get(format!("{}/v1/events/stream", server.base)).send().await;
        followers.push(stream.expect("a stream"));
    }
    let before = server.ticks();
    let begin = Instant::now();
    let publish = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        for n in 0..EVENTS {
            pace.tick().await;
            server.status_of("/v1/events", &json!({"type": "t", "data": n})).await;
        }
    };
    let follow = followers.into_iter().map(|mut stream| async move {
        let mut seen = 0;
        while seen < EVENTS {
            let chunk = tokio::time::timeout(Duration::from_mins(1), stream.chunk()).await;
            let Ok(Ok(Some(chunk))) = chunk else { break };
            seen += chunk.windows(5).filter(|window| window == b"data:").count();
        }
        seen
    });
    let (seen, ()) = tokio::join!(futures_util::future::join_all(follow), publish);
    let complete = seen.iter().filter(|seen| **seen == EVENTS).count();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand ticks")]
    let cpu = (server.ticks() - before) as f64 / 100.0;
    println!(
        "sse-1000: {complete} of {CLIENTS} clients saw all {EVENTS} events, in {:.1} s with {cpu:.1} s \
         of CPU and {} MiB",
        begin.elapsed().as_secs_f64(),
        server.rss_kib() / 1024
    );
}

async fn idle_memory(redis: &str, database: &str, temporal: &str) {
    let variables =
        [("REDIS_URL", redis), ("DATABASE_URL", database), ("TEMPORAL_ADDRESS", temporal)];
    let server = ready(&variables).await;
    let http = Client::new();
    loop {
        let answer = http.get(format!("{}/health", server.base)).send().await.expect("an answer");
        let health: Value = answer.json().await.expect("JSON");
        if health["status"] == "healthy" {
            break;
        }
        tokio::task::yield_now().await;
    }
    println!(
        "idle-rss: {:.1} MiB",
        f64::from(u32::try_from(server.rss_kib()).unwrap_or(0)) / 1024.0
    );
}

async fn first_requests(redis: &str) {
    const REQUESTS: usize = 2000;
    let variables = [("REDIS_URL", redis), ("AGENTAREA_EVENT_BROKER__STARTUP", "lazy")];
    let server = ready(&variables).await;
    let http = Client::new();
    let body = json!({"type": "x"});
    let begin = Instant::now();
    let all = (0..REQUESTS).map(|_| server.status_of("/v1/events?delivery=direct", &body));
    let accepted =
        futures_util::future::join_all(all).await.into_iter().filter(|code| *code == 200).count();
    let took = begin.elapsed().as_millis();
    let answer =
        http.get(format!("{}/v1/connections", server.base)).send().await.expect("an answer");
    let connections: Value = answer.json().await.expect("JSON");
    let broker = connections["items"]
        .as_array()
        .and_then(|items| items.iter().find(|item| item["name"] == "event_broker"));
    let builds = broker.map(|broker| broker["reuse"]["builds"].clone()).unwrap_or_default();
    println!(
        "first-requests: {accepted} of {REQUESTS} accepted in {took} ms, {builds} connection built"
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
