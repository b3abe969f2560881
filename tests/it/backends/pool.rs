//! The pool of the database, through the program.

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use serde_json::json;

use crate::support::{Service, Setup, answer, eventually};

const REPORT: &str = "longer than pool.leak_after";

fn reports(log: &str) -> usize {
    log.matches(REPORT).count()
}

async fn nobody_holds_a_connection(service: &Service) {
    eventually("nobody holds a connection", async || {
        let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
        let series = "agentarea_connection_pool_in_use{connection=\"database\"} 0";
        metrics.lines().any(|line| line == series).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_that_holds_a_connection_for_long_is_named_in_the_log() {
    let service = Setup::new()
        .set("telemetry.log_filter", "\"warn,agentarea_api::app=info\"")
        .set("database.pool.leak_after", "\"200ms\"")
        // Prevents the refusal of a request that waits behind others on a busy machine.
        .set("database.pool.acquire_timeout", "\"20s\"")
        .set("database.timeout.attempt", "\"25s\"")
        .set("database.timeout.total", "\"25s\"")
        // A probe has a connection of its own: waiting for the file, it would be before everybody
        // and be reported by nobody.
        .set("database.probe.interval", "\"10m\"")
        .start()
        .await;
    service.healthy().await;
    let file = service.path().join("data/agentarea.db");
    let mut other = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    // The service may be writing at the same time.
    other.batch_execute("PRAGMA busy_timeout = 10000").unwrap();
    let report = eventually("the request is reported", async || {
        // A task that was reported in the round before still holds its connection if it missed
        // the moment in which the file was free, and is not reported again.
        nobody_holds_a_connection(&service).await;
        other.batch_execute("BEGIN IMMEDIATE").unwrap();
        let before = reports(&service.log());
        let unlocked = async {
            eventually("somebody is reported", async || {
                (reports(&service.log()) > before).then_some(())
            })
            .await;
            other.batch_execute("ROLLBACK").unwrap();
        };
        let request = service
            .post("/v1/executions")
            .header("x-request-id", "the-slow-one")
            .json(&json!({"workflow": "echo", "input": 1}));
        let ((status, _), ()) = tokio::join!(answer(request), unlocked);
        assert_eq!(status, 202);
        // An earlier background task may have delayed it.
        let log = service.log();
        let of_the_request = |line: &&str| line.contains(REPORT) && line.contains("the-slow-one");
        log.lines().find(of_the_request).map(str::to_owned)
    })
    .await;
    assert!(report.contains("WARN request{request_id=the-slow-one"), "{report}");
    assert!(report.contains("connection=\"database\" operation=\"accept\""), "{report}");
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_call_that_finds_no_pooled_connection_in_time_is_refused_with_retry_after() {
    use crate::support::{Database, Link, Passing, is_overloaded};

    let database = Database::create().await;
    let link = Link::to(database.address()).await;
    let url = database.url_at(&link.address);
    let service = Setup::new()
        .variable("DATABASE_URL", &url)
        .set("database.pool", "{ max_size = 1, acquire_timeout = \"200ms\" }")
        // Long enough for the other to be refused, even on a busy machine.
        .set("database.timeout", "{ attempt = \"20s\", total = \"20s\" }")
        .set("database.probe", "{ interval = \"10m\", timeout = \"5s\" }")
        .start()
        .await;
    service.healthy().await;
    link.set(Passing::Stalled);
    // At most one of them, or a background task, holds the only connection.
    let [one, two] = [(), ()].map(|()| Box::pin(service.get("/v1/executions").send()));
    let (first, _hangs) = futures_util::future::select(one, two).await.factor_first();
    is_overloaded(first.unwrap()).await;
    link.set(Passing::Cut);
    drop(service);
    database.drop().await;
}

/// Accepts executions from many concurrent clients, and waits until all of them are started.
async fn accepted_executions_leave(setup: Setup) {
    const CLIENTS: usize = 32;
    const EACH: usize = 16;
    let service = setup
        .set("database.pool.max_size", "2")
        .set("database.timeout", "{ attempt = \"20s\", total = \"20s\" }")
        .set("database.pool.acquire_timeout", "\"15s\"")
        .start()
        .await;
    service.healthy().await;
    let client = async || {
        for _ in 0..EACH {
            service.execute(&json!({"workflow": "echo", "input": 1})).await;
        }
    };
    futures_util::future::join_all((0..CLIENTS).map(|_| client())).await;
    eventually("all of them are handed over", async || {
        let waiting = service.json("/v1/executions?status=accepted&limit=1").await;
        waiting["items"].as_array()?.is_empty().then_some(())
    })
    .await;
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let series = r#"call_seconds_count{connection="execution_service",operation="start",outcome="#;
    let of_start = metrics.lines().filter(|line| line.contains(series));
    let starts: usize =
        of_start.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(starts, CLIENTS * EACH, "each is started once");
}

#[tokio::test]
async fn with_a_pool_of_two_accepted_executions_leave_and_each_is_started_once() {
    accepted_executions_leave(Setup::new()).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn with_a_pool_of_two_to_postgres_accepted_executions_leave_and_each_is_started_once() {
    use crate::support::Database;

    let database = Database::create().await;
    accepted_executions_leave(Setup::new().variable("DATABASE_URL", &database.url)).await;
    database.drop().await;
}
