//! Shutdown and exit codes.

use std::time::Duration;

use serde_json::json;

#[cfg(feature = "redis")]
use crate::support::free_port;
use crate::support::{DEADLINE, Setup, eventually, signal};

#[tokio::test]
async fn requests_under_way_finish_and_streams_end_with_a_hint() {
    let mut service = Setup::new().set("workflows.slow.delay", "\"1s\"").start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let id = service.execute(&json!({"workflow": "slow"})).await;
    let slow = service.get(&format!("/v1/executions/{id}?wait=20s")).send();
    let stopping = async {
        eventually("the slow request is served", async || {
            let text = service.get("/metrics").send().await.ok()?.text().await.ok()?;
            text.contains(r#"route="/v1/executions",status="202""#).then_some(())
        })
        .await;
        signal(&service.child, "-TERM");
    };
    let (slow, ()) = tokio::join!(slow, stopping);
    let slow: serde_json::Value = slow.unwrap().json().await.unwrap();
    assert_eq!(slow["status"], "completed", "the answer was not cut off");
    while events.try_next().await.is_some() {}
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    assert!(service.log().contains("stopped"));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut service = Setup::new().set("server.drain_delay", "\"10m\"").start().await;
    signal(&service.child, "-INT");
    eventually("the first is heard", async || service.log().contains("SIGINT").then_some(())).await;
    // Signals in quick succession count as one, so the signal is repeated until the program reacts.
    let code = eventually("it ends at once", async || {
        signal(&service.child, "-INT");
        service.child.try_wait().unwrap()
    })
    .await;
    assert_eq!(code.code(), Some(130));
}

#[tokio::test]
async fn work_that_does_not_end_in_time_is_cut_off_and_named() {
    let mut service = Setup::new()
        .set("workflows.slow.delay", "\"10m\"")
        .set("server.shutdown_grace", "\"300ms\"")
        .start()
        .await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "slow"})).await;
    let waiting = service.get(&format!("/v1/executions/{id}?wait=60s")).send();
    let stopping = async {
        // The request is being served once its execution is counted.
        eventually("the execution runs", async || {
            let execution = service.json(&format!("/v1/executions/{id}")).await;
            (execution["status"] == "running").then_some(())
        })
        .await;
        tokio::task::yield_now().await;
        signal(&service.child, "-TERM");
    };
    let (cut, ()) = tokio::join!(tokio::time::timeout(DEADLINE, waiting), stopping);
    assert!(cut.expect("the request ends").is_err(), "the request was cut off");
    assert_eq!(service.exit_code().await, Some(75), "{}", service.log());
    assert!(service.log().contains("were cut off"), "{}", service.log());
}

#[tokio::test]
async fn log_files_are_whole_when_the_program_has_ended() {
    let mut service = Setup::new().start_with_log_files().await;
    signal(&service.child, "-TERM");
    assert_eq!(service.exit_code().await, Some(0));
    let folder = service.path().join("logs");
    let file = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.lines().last().unwrap().contains("stopped"), "{text}");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, log) = Setup::new().set("server.port", &port).run().await;
    assert_eq!(code, Some(71), "{log}");
    assert!(log.contains(&port) && log.contains("choose another with PORT"), "{log}");
}

#[tokio::test]
async fn bad_configuration_is_78_and_bad_usage_is_2() {
    let (code, log) = Setup::new().set("server.prot", "1").run().await;
    assert_eq!(code, Some(78), "{log}");
    let (code, log) = Setup::new().argument("sreve").run().await;
    assert_eq!(code, Some(2), "{log}");
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_connection_that_start_needs_ends_it() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let setup = Setup::new()
        .variable("REDIS_URL", &url)
        .set("event_broker.startup", "\"fail\"")
        .set("event_broker.startup_timeout", "\"500ms\"");
    let (code, log) = setup.run().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("a connection that start needs cannot be made"), "{log}");
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn a_signal_while_start_waits_for_a_connection_cuts_no_request() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let mut service = Setup::new()
        .variable("REDIS_URL", &url)
        .set("event_broker.startup", "\"wait\"")
        .set("event_broker.startup_timeout", "\"10m\"")
        .set("workflows.slow.delay", "\"1s\"")
        .start()
        .await;
    eventually("it serves although it waits", async || {
        service.get("/readyz").send().await.ok()?.status().is_success().then_some(())
    })
    .await;
    let id = service.execute(&json!({"workflow": "slow"})).await;
    let slow = service.get(&format!("/v1/executions/{id}?wait=20s")).send();
    let stopping = async {
        eventually("the execution runs", async || {
            let execution = service.json(&format!("/v1/executions/{id}")).await;
            (execution["status"] == "running").then_some(())
        })
        .await;
        signal(&service.child, "-TERM");
    };
    let (slow, ()) = tokio::join!(slow, stopping);
    let slow: serde_json::Value = slow.unwrap().json().await.unwrap();
    assert_eq!(slow["status"], "completed", "the answer was not cut off");
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
    assert!(service.log().contains("stopped"), "it drained");
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn waiting_for_a_connection_ends_with_it_or_with_its_time() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let service = Setup::new()
        .variable("REDIS_URL", &url)
        .set("event_broker.startup", "\"wait\"")
        .set("event_broker.startup_timeout", "\"500ms\"")
        .start()
        .await;
    let health = service.health("the outage shows", |h| h["status"] == "degraded").await;
    assert_eq!(health["connections"]["services"]["event_broker"], "unavailable");
}

#[tokio::test]
async fn a_second_process_on_the_same_database_is_refused_by_name() {
    let first = Setup::new().start().await;
    first.healthy().await;
    let path = first.path().join("data/agentarea.db");
    let setup = Setup::new()
        .variable("DATABASE_URL", &format!("sqlite:{}", path.display()))
        .set("database.startup", "\"fail\"")
        .set("database.startup_timeout", "\"1s\"");
    let (code, log) = tokio::time::timeout(Duration::from_secs(20), setup.run()).await.unwrap();
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("is in use by another process"), "{log}");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_database_that_needs_a_newer_program_ends_it() {
    use diesel::{Connection, RunQueryDsl, SqliteConnection, sql_query};
    let service = Setup::new().start().await;
    service.healthy().await;
    let setup = service.kill();
    let path = setup.path().join("data/agentarea.db");
    let mut database = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    sql_query("UPDATE schema_info SET oldest_program = '99.0.0'").execute(&mut database).unwrap();
    drop(database);
    let (code, log) = setup.run().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(log.contains("the database needs agentarea-api 99.0.0 or newer"), "{log}");
}
