//! The curves of `docs/performance.md`: `cargo bench --bench figures -- curves`, followed by
//! `short` for a quick look.
//!
//! Each curve becomes a picture and its data in `docs/pictures`, and a table in the page.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use reqwest::Client;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    accept, chart,
    program::ready,
    support::{Database, Service},
};

const PAGE: &str = "docs/performance.md";
const PICTURES: &str = "docs/pictures";
const CLIENTS: usize = 64;
const POOLS: [u32; 6] = [1, 2, 4, 8, 16, 32];
const REPLICAS: [u32; 3] = [1, 2, 4];
const INTERVALS_MS: [u32; 7] = [100, 250, 500, 1000, 2500, 5000, 10_000];
/// The fixed load under which the waits are measured: this number of clients, each of which reads
/// again after its answer and a pause.
const READERS: usize = 32;
const PAUSE: Duration = Duration::from_millis(20);

/// The servers for the measurement.
pub(crate) struct Servers {
    pub(crate) redis: String,
    pub(crate) temporal: String,
}

/// A measured curve: rows of an abscissa and its values.
pub(crate) struct Curve {
    /// The name of the picture, the data and the place in the page.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) x: &'static str,
    pub(crate) y: &'static str,
    /// The headings of the values; the first is drawn.
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<(f64, Vec<f64>)>,
}

pub(crate) async fn curves(servers: &Servers, short: bool) {
    let lasts = Duration::from_secs(if short { 1 } else { 15 });
    let curves = [
        accepted_by_pool(servers, lasts).await,
        waits_by_pool(servers, lasts).await,
        accepted_by_replicas(servers, lasts).await,
        probes_by_interval(servers, lasts * 4).await,
    ];
    for curve in &curves {
        println!("{}\n\n{}", curve.title, table(curve));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = root.join(PAGE);
    let mut text = fs::read_to_string(&page).expect("the page is there");
    for curve in &curves {
        let file = |ending: &str| -> PathBuf {
            root.join(PICTURES).join(format!("performance-{}.{ending}", curve.name))
        };
        fs::write(file("svg"), chart::svg(curve)).expect("the picture is written");
        fs::write(file("csv"), csv(curve)).expect("the data are written");
        text = put(&text, curve, lasts);
    }
    fs::write(&page, text).expect("the page is written");
    println!("written: {PAGE} and {PICTURES}/performance-*");
}

fn csv(curve: &Curve) -> String {
    let head = [&[curve.x], curve.columns].concat().join(",");
    let rows = curve.rows.iter().map(|(x, values)| {
        let values = values.iter().map(|value| format!(",{value:.3}")).collect::<Vec<_>>().concat();
        format!("{x}{values}\n")
    });
    format!("{head}\n{}", rows.collect::<Vec<_>>().concat())
}

fn table(curve: &Curve) -> String {
    let head = [&[curve.x], curve.columns].concat();
    let rows = curve.rows.iter().map(|(x, values)| {
        let values =
            values.iter().map(|value| format!(" {value:.3} |")).collect::<Vec<_>>().concat();
        format!("| {x} |{values}\n")
    });
    format!(
        "| {} |\n|{}\n{}",
        head.join(" | "),
        "---|".repeat(head.len()),
        rows.collect::<Vec<_>>().concat()
    )
}

/// Replaces the content that an earlier run has put between the marks of the curve.
fn put(page: &str, curve: &Curve, lasts: Duration) -> String {
    let (begin, end) = (format!("<!-- {}: measured -->", curve.name), "<!-- end -->");
    let (before, rest) = page.split_once(&begin).expect("the page has a place for the curve");
    let (_, after) = rest.split_once(end).expect("the place ends");
    let (table, lasts) = (table(curve), lasts.as_secs());
    format!("{before}{begin}\n\n{table}\nAt least {lasts} s for each row.\n\n{end}{after}")
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("not so many"))
}

/// Publishes durably from all clients, which take the servers in turn. Returns the rate, and the
/// median time of a request in milliseconds.
async fn accept_rate(servers: &[Service], lasts: Duration) -> (f64, f64) {
    let begin = Instant::now();
    let one = |client: usize| {
        let server = &servers[client % servers.len()];
        async move {
            let body = json!({"type": "t", "subject": format!("s{client}"), "data": {"n": 1}});
            let mut took = Vec::new();
            while begin.elapsed() < lasts {
                let sent = Instant::now();
                assert_eq!(server.status_of("/v1/events", &body).await, 202);
                took.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            took
        }
    };
    let all = join_all((0..CLIENTS).map(one)).await.concat();
    (count(all.len()) / begin.elapsed().as_secs_f64(), crate::median(all))
}

/// Starts programs on one database, all of which accept.
async fn replicas(
    number: u32,
    servers: &Servers,
    url: &str,
    more: &[(&str, &str)],
) -> Vec<Service> {
    let variables = [
        &[
            ("REDIS_URL", servers.redis.as_str()),
            ("DATABASE_URL", url),
            ("AGENTAREA_OUTBOX__MAX_ROWS", "100000000"),
        ],
        more,
    ]
    .concat();
    let replicas = join_all((0..number).map(|_| ready(&variables))).await;
    for replica in &replicas {
        accept::accepting(replica).await;
    }
    replicas
}

async fn accepted_by_pool(servers: &Servers, lasts: Duration) -> Curve {
    let mut rows = Vec::new();
    for size in POOLS {
        let database = Database::create().await;
        let pool = size.to_string();
        let size_of_pool = [("AGENTAREA_DATABASE__POOL__MAX_SIZE", pool.as_str())];
        let one = replicas(1, servers, &database.url, &size_of_pool);
        let (rate, median) = accept_rate(&one.await, lasts).await;
        rows.push((f64::from(size), vec![rate, median]));
        database.drop().await;
    }
    Curve {
        name: "pool",
        title: "Events accepted by pool size",
        x: "database.pool.max_size",
        y: "accepted a second",
        columns: &["accepted a second", "median, ms"],
        rows,
    }
}

async fn accepted_by_replicas(servers: &Servers, lasts: Duration) -> Curve {
    let mut rows = Vec::new();
    for number in REPLICAS {
        let database = Database::create().await;
        let (rate, median) =
            accept_rate(&replicas(number, servers, &database.url, &[]).await, lasts).await;
        rows.push((f64::from(number), vec![rate, median]));
        database.drop().await;
    }
    Curve {
        name: "replicas",
        title: "Events accepted by replicas on one PostgreSQL",
        x: "replicas",
        y: "accepted a second",
        columns: &["accepted a second", "median, ms"],
        rows,
    }
}

/// Returns the sum and the count of the waits for a pooled connection.
async fn waits(server: &Service) -> (f64, f64) {
    let answer = Client::new().get(format!("{}/metrics", server.base)).send().await;
    let text = answer.expect("an answer").text().await.expect("a body");
    let value = |part: &str| {
        let series = format!(
            "agentarea_connection_acquire_seconds_{part}{{connection=\"database\",phase=\"wait\"}} "
        );
        let value = text.lines().find_map(|line| line.strip_prefix(&series));
        value.and_then(|value| value.parse().ok()).expect("the series is there")
    };
    (value("sum"), value("count"))
}

async fn waits_by_pool(servers: &Servers, lasts: Duration) -> Curve {
    let mut rows = Vec::new();
    for size in POOLS {
        let database = Database::create().await;
        let pool = size.to_string();
        let size_of_pool = [("AGENTAREA_DATABASE__POOL__MAX_SIZE", pool.as_str())];
        let one = replicas(1, servers, &database.url, &size_of_pool);
        let one = one.await.pop().expect("there is one");
        let before = waits(&one).await;
        let (http, begin) = (Client::new(), Instant::now());
        let read = || async {
            let mut took = Vec::new();
            while begin.elapsed() < lasts {
                let sent = Instant::now();
                let request = http.get(format!("{}/v1/executions?limit=1", one.base));
                let answer = request.send().await.expect("an answer");
                assert_eq!(answer.status(), 200);
                answer.bytes().await.expect("a body");
                took.push(sent.elapsed().as_secs_f64() * 1e3);
                sleep(PAUSE).await;
            }
            took
        };
        let all = join_all((0..READERS).map(|_| read())).await.concat();
        let after = waits(&one).await;
        let mean = (after.0 - before.0) / (after.1 - before.1).max(1.0) * 1e3;
        let rate = count(all.len()) / begin.elapsed().as_secs_f64();
        rows.push((f64::from(size), vec![mean, crate::median(all), rate]));
        drop(one);
        database.drop().await;
    }
    Curve {
        name: "waits",
        title: "Wait for a pooled connection by pool size",
        x: "database.pool.max_size",
        y: "mean wait, ms",
        columns: &["mean wait, ms", "median of the request, ms", "requests a second"],
        rows,
    }
}

async fn probes_by_interval(servers: &Servers, lasts: Duration) -> Curve {
    let mut rows = Vec::new();
    for interval in INTERVALS_MS {
        let database = Database::create().await;
        let (pause, time) = (format!("{interval}ms"), format!("{}ms", interval.min(2000)));
        let more = [
            ("TEMPORAL_ADDRESS", servers.temporal.as_str()),
            ("AGENTAREA_DATABASE__PROBE__INTERVAL", &pause),
            ("AGENTAREA_DATABASE__PROBE__TIMEOUT", &time),
            ("AGENTAREA_EVENT_BROKER__PROBE__INTERVAL", &pause),
            ("AGENTAREA_EVENT_BROKER__PROBE__TIMEOUT", &time),
            ("AGENTAREA_EXECUTION_SERVICE__PROBE__INTERVAL", &pause),
            ("AGENTAREA_EXECUTION_SERVICE__PROBE__TIMEOUT", &time),
        ];
        let one = replicas(1, servers, &database.url, &more).await;
        // Work left over from startup must not count towards the probes.
        sleep(Duration::from_secs(2)).await;
        let (begin, before) = (Instant::now(), one[0].ticks());
        sleep(lasts).await;
        let ticks = f64::from(u32::try_from(one[0].ticks() - before).expect("not so many"));
        // A tick is a hundredth of a second.
        rows.push((f64::from(interval) / 1e3, vec![ticks / begin.elapsed().as_secs_f64()]));
        drop(one);
        database.drop().await;
    }
    Curve {
        name: "probes",
        title: "Processor time of an idle instance by probe interval",
        x: "probe.interval, s",
        y: "% of a core",
        columns: &["% of a core"],
        rows,
    }
}
