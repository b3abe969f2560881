//! Servers that are not a loopback away.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    backends::fleet::fleet,
    support::{
        Database, Redis, Service, answer, cloud_event, eventually, metric, send_cloud_event,
    },
};

const NEAR: Duration = Duration::from_millis(2);
const FAR: Duration = Duration::from_millis(20);

/// Events and executions of many clients at once.
const CLIENTS: usize = 16;
const EACH: usize = 4;

async fn sends_both(service: &Service, client: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..EACH {
        let event = cloud_event(&format!("c{client}"), n);
        assert_eq!(send_cloud_event(service, &event).await.0, 202);
        ids.push(service.execute(&json!({"workflow": "echo", "input": n})).await);
    }
    ids
}

/// With a pool of two, all that was accepted leaves, is run once and is announced in order.
async fn accepted_work_moves(rtt: Duration) {
    let (redis, database) = (Redis::start().await, Database::create().await);
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    let fleet = || fleet(&redis, &database, &queue).away(rtt);
    let worker = fleet().argument("worker").launch();
    let service = fleet()
        .set("database.pool.max_size", "2")
        .set("event_broker.pool.max_size", "2")
        .start()
        .await;
    service.healthy().await;
    let mut events = service.follow("?type=t", None).await;
    let sent = join_all((0..CLIENTS).map(|client| sends_both(&service, client))).await;

    let mut next = [0; CLIENTS];
    for _ in 0..CLIENTS * EACH {
        let event = events.next().await.data;
        let client = event["subject"].as_str().unwrap()[1..].parse::<usize>().unwrap();
        assert_eq!(event["data"], next[client], "out of order: {event}");
        next[client] += 1;
    }
    for ids in sent {
        for (n, id) in ids.iter().enumerate() {
            let ended = service.result(id).await;
            let (status, result) = (&ended["status"], &ended["result"]);
            assert_eq!((status, result), (&json!("completed"), &json!(n)), "{ended}");
        }
    }
    eventually("nothing waits", async || {
        (metric(&service, "agentarea_outbox_rows").await < 1.0).then_some(())
    })
    .await;
    drop((service, worker));
    database.drop().await;
}

#[tokio::test]
async fn accepted_work_moves_with_2_ms_to_every_server() {
    accepted_work_moves(NEAR).await;
}

#[tokio::test]
async fn accepted_work_moves_with_20_ms_to_every_server() {
    accepted_work_moves(FAR).await;
}

fn batch(from: usize, to: usize) -> Value {
    (from..to).map(|n| cloud_event("batch", n)).collect()
}

/// One statement each: event by event, the distance alone would take longer than an attempt may.
#[tokio::test]
async fn a_batch_of_thousands_with_a_key_or_known_events_is_accepted_from_20_ms_away() {
    let (redis, database) = (Redis::start().await, Database::create().await);
    let service = fleet(&redis, &database, "batches")
        .away(FAR)
        .set("server.max_body", "\"8MiB\"")
        .start()
        .await;
    service.healthy().await;
    let send = async |events: &Value, key: Option<&str>| {
        let mut request = service
            .post("/v1/events")
            .header("content-type", "application/cloudevents-batch+json")
            .body(events.to_string());
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        answer(request).await
    };
    let keyed = batch(0, 6000);
    assert_eq!(send(&keyed, Some("k")).await.0, 202);
    assert_eq!(send(&keyed, Some("k")).await.0, 202, "again, with the key");
    assert_eq!(send(&keyed, None).await.0, 202, "again, without");
    assert_eq!(send(&batch(5999, 9000), None).await.0, 202, "one of them is known");
    assert_eq!(send(&batch(8999, 10_000), Some("other")).await.0, 202, "one is known");
    let stored = database.value("SELECT count(*) FROM outbox").await;
    assert_eq!(stored, 10_000);
    drop(service);
    database.drop().await;
}
