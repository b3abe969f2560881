//! Measures the cost of durable acceptance, and shows whether the relay keeps up.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    median, own_commit,
    program::{ready, setup},
    support::{Database, Service, metric},
};

const CLIENTS: usize = 64;
const MEASURED: Duration = Duration::from_secs(10);
const SUSTAINED: Duration = Duration::from_mins(1);
/// Makes `PostgreSQL` parse the accepting statement without storing or committing anything.
const STUB: &str = "CREATE RULE stub AS ON INSERT TO outbox DO INSTEAD NOTHING";
const WAITING: u32 = 1_000_000;
/// Nothing listens at this address, so accepted events wait.
const NOWHERE: &str = "redis://127.0.0.1:1";
const DURABLE: &str = "/v1/events";
/// The same route without a database: the memory broker accepts the event.
const WITHOUT_DATABASE: &str = "/v1/events?delivery=direct";

struct Rate {
    per_second: f64,
    median_ms: f64,
    cpu_micros: f64,
}

/// Runs clients that each send one event after another.
async fn rate(server: &Service, path: &str, clients: usize, lasts: Duration) -> Rate {
    let (begin, ticks) = (Instant::now(), server.ticks());
    let one = |client: usize| async move {
        let body = json!({"type": "t", "subject": format!("s{client}"), "data": {"n": 1}});
        let mut took = Vec::new();
        while begin.elapsed() < lasts {
            let sent = Instant::now();
            let status = server.status_of(path, &body).await;
            assert!(matches!(status, 200 | 202), "{status}");
            took.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        took
    };
    let all = futures_util::future::join_all((0..clients).map(one)).await.concat();
    let took = begin.elapsed().as_secs_f64();
    let count = f64::from(u32::try_from(all.len()).expect("not so many"));
    let ticks = f64::from(u32::try_from(server.ticks() - ticks).expect("not so many"));
    Rate { per_second: count / took, median_ms: median(all), cpu_micros: ticks * 1e4 / count }
}

fn show(name: &str, rate: &Rate) {
    let Rate { per_second, median_ms, cpu_micros } = rate;
    println!(
        "accept, {name}: {per_second:.0}/s, p50 {median_ms:.2} ms, {cpu_micros:.0} µs of CPU each"
    );
}

/// Waits until the database is connected. It does not wait for readiness, which a broker that is
/// down prevents.
pub(crate) async fn accepting(server: &Service) {
    let body = json!({"type": "t"});
    while server.status_of(DURABLE, &body).await != 202 {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the variables of a program on `postgres`, or on `SQLite`, that refuses nothing.
fn variables<'a>(redis: &'a str, postgres: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let most = ("AGENTAREA_OUTBOX__MAX_ROWS", "100000000");
    let postgres = postgres.map(|url| ("DATABASE_URL", url));
    [("REDIS_URL", redis), most].into_iter().chain(postgres).collect()
}

pub(crate) async fn figures(redis: &str) {
    let database = Database::create().await;
    waits_for_disk(&database, true).await;
    let direct = ready(&[]).await;
    show("without a database", &rate(&direct, WITHOUT_DATABASE, CLIENTS, MEASURED).await);
    drop(direct);
    println!("own commit, SQLite: p50 {:.2} ms", own_commit::sqlite_ms());
    println!("own commit, PostgreSQL: p50 {:.2} ms", own_commit::postgres_ms(&database).await);
    for (name, postgres) in [("SQLite", None), ("PostgreSQL", Some(database.url.as_str()))] {
        alone(name, postgres, &database).await;
        handed_over(name, postgres, redis).await;
    }
    full_outbox(redis, &database).await;
    database.drop().await;
}

/// Measures acceptance while nothing is delivered.
async fn alone(name: &str, postgres: Option<&str>, database: &Database) {
    let variables = variables(NOWHERE, postgres);
    let server = setup(&variables).start().await;
    accepting(&server).await;
    show(&format!("{name}, one client"), &rate(&server, DURABLE, 1, MEASURED).await);
    show(name, &rate(&server, DURABLE, CLIENTS, MEASURED).await);
    if postgres.is_some() {
        database.within(STUB).await;
        let stubbed = rate(&server, DURABLE, CLIENTS, MEASURED).await;
        show(&format!("{name}, commit stubbed out"), &stubbed);
        database.within("DROP RULE stub ON outbox").await;
    }
    drop(server);
    // Everything but the wait for the disk: both runs include the other costs of a commit.
    waits_for_disk(database, false).await;
    let normal = ("AGENTAREA_DATABASE__SQLITE__SYNCHRONOUS", "normal");
    let server = setup(&[&variables[..], &[normal]].concat()).start().await;
    accepting(&server).await;
    let unwaited = rate(&server, DURABLE, CLIENTS, MEASURED).await;
    show(&format!("{name}, without waiting for the disk"), &unwaited);
    drop(server);
    waits_for_disk(database, true).await;
}

/// Measures sustained acceptance with immediate delivery.
async fn handed_over(name: &str, postgres: Option<&str>, redis: &str) {
    let server = ready(&variables(redis, postgres)).await;
    hand_over_the_rest(&server).await;
    let before = metric(&server, "agentarea_outbox_delivered_total").await;
    let begin = Instant::now();
    show(&format!("{name}, relay on"), &rate(&server, DURABLE, CLIENTS, SUSTAINED).await);
    let delivered = metric(&server, "agentarea_outbox_delivered_total").await - before;
    let delivered = delivered / begin.elapsed().as_secs_f64();
    let depth = metric(&server, "agentarea_outbox_rows").await;
    println!("delivery, {name}: {delivered:.0}/s, {depth:.0} waiting at the end");
}

/// Waits until the earlier backlog is delivered. The depth is not known at once, so the count has
/// to stop rising as well.
async fn hand_over_the_rest(server: &Service) {
    let delivered = async || metric(server, "agentarea_outbox_delivered_total").await;
    loop {
        let before = delivered().await;
        sleep(Duration::from_secs(2)).await;
        let waiting = metric(server, "agentarea_outbox_rows").await;
        if waiting <= 0.0 && delivered().await <= before {
            return;
        }
    }
}

/// Sets whether the `PostgreSQL` server waits for the disk at a commit.
async fn waits_for_disk(database: &Database, waits: bool) {
    let fsync = if waits { "on" } else { "off" };
    database.execute(&format!("ALTER SYSTEM SET fsync = {fsync}")).await;
    database.execute("SELECT pg_reload_conf()").await;
}

async fn full_outbox(redis: &str, database: &Database) {
    database
        .within(&format!(
            "INSERT INTO outbox (lane, source, event_id, content_hash, event, state, created_at, \
             refusals) SELECT n % 16, 'figures', n::text, 'h', '{{\"specversion\":\"1.0\",\
             \"id\":\"' || n || '\",\"source\":\"figures\",\"type\":\"t\"}}', 'pending', \
             extract(epoch FROM now())::bigint * 1000000, 0 FROM generate_series(1, {WAITING}) n"
        ))
        .await;
    let server = setup(&variables(NOWHERE, Some(&database.url))).start().await;
    accepting(&server).await;
    show("PostgreSQL, 1,000,000 waiting", &rate(&server, DURABLE, CLIENTS, MEASURED).await);
    drop(server);
    let server = ready(&variables(redis, Some(&database.url))).await;
    let (begin, mut rss) = (Instant::now(), 0);
    while metric(&server, "agentarea_outbox_rows").await > 0.0 || begin.elapsed().as_secs() < 3 {
        rss = rss.max(server.rss_kib());
        sleep(Duration::from_millis(100)).await;
    }
    let delivered = metric(&server, "agentarea_outbox_delivered_total").await;
    println!(
        "drain: {:.0}/s, {} MiB of memory at most",
        delivered / begin.elapsed().as_secs_f64(),
        rss / 1024
    );
}
