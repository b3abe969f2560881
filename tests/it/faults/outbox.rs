//! Accepted work is never lost: tests through the program.

#[cfg(feature = "redis")]
mod with_redis;

use serde_json::{Value, json};

use crate::support::{Setup, cloud_event, eventually, metric, send_cloud_event};

#[tokio::test]
async fn a_repeated_event_is_stored_once_and_another_with_its_id_is_refused() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let event = cloud_event("a", 1);
    for _ in 0..3 {
        assert_eq!(send_cloud_event(&service, &event).await.0, 202);
    }
    let mut other = event.clone();
    other["data"] = json!("another");
    let (status, problem) = send_cloud_event(&service, &other).await;
    assert_eq!(status, 409, "{problem}");
    assert!(problem["type"].as_str().unwrap().ends_with("already-exists"), "{problem}");
    assert_eq!(send_cloud_event(&service, &cloud_event("a", 2)).await.0, 202);
    assert_eq!(events.ids(2).await, ["a-1", "a-2"]);
    eventually("both are delivered", async || {
        (metric(&service, "agentarea_outbox_delivered_total").await >= 2.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_delivered_does_not_count_as_waiting() {
    let service = Setup::new().set("outbox.max_rows", "200").start().await;
    service.healthy().await;
    for n in 0..600 {
        let (status, problem) = send_cloud_event(&service, &cloud_event("a", n)).await;
        assert_eq!(status, 202, "event {n}: {problem}");
    }
}

#[tokio::test]
async fn of_requests_that_come_side_by_side_a_bad_one_fails_alone() {
    let service = Setup::new().start().await;
    service.healthy().await;
    assert_eq!(send_cloud_event(&service, &cloud_event("a", 0)).await.0, 202);
    let mut events: Vec<Value> = (0..60).map(|n| cloud_event("b", n)).collect();
    events[30] = cloud_event("a", 0);
    events[30]["data"] = json!("another");
    let sent = events.iter().map(|event| send_cloud_event(&service, event));
    let answers = futures_util::future::join_all(sent).await;
    let statuses: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    let mut expected = vec![202; 60];
    expected[30] = 409;
    assert_eq!(statuses, expected);
}

#[tokio::test]
async fn a_follower_resumes_over_a_restart_of_the_embedded_service() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    for n in 0..5 {
        assert_eq!(send_cloud_event(&service, &cloud_event("a", n)).await.0, 202);
    }
    let seen = events.next().await;
    events.ids(4).await;
    eventually("all are marked", async || {
        (metric(&service, "agentarea_outbox_delivered_total").await >= 5.0).then_some(())
    })
    .await;

    let service = service.kill().start().await;
    service.healthy().await;
    let mut resumed = service.follow("", seen.id.as_deref()).await;
    assert_eq!(resumed.ids(4).await, ["a-1", "a-2", "a-3", "a-4"]);
    assert_eq!(send_cloud_event(&service, &cloud_event("a", 5)).await.0, 202);
    assert_eq!(resumed.ids(1).await, ["a-5"]);
}

#[tokio::test]
async fn an_idempotency_key_publishes_once() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let publish = async |path: &str, key: &'static str, body: Value| {
        let request = service.post(path).header("Idempotency-Key", key).json(&body);
        crate::support::answer(request).await
    };
    let event = || json!({"type": "t", "subject": "a", "data": 1});
    let (status, first) = publish("/v1/events", "e-1", event()).await;
    assert_eq!(status, 202, "{first}");
    for _ in 0..3 {
        assert_eq!(publish("/v1/events", "e-1", event()).await, (status, first.clone()));
    }
    let (status, problem) = publish("/v1/events", "e-1", json!({"type": "u"})).await;
    assert_eq!(status, 422, "{problem}");
    let (status, problem) = publish("/v1/events?delivery=direct", "e-2", event()).await;
    assert_eq!(status, 400, "{problem}");
    // Executions have separate keys.
    let (status, _) = publish("/v1/executions", "e-1", json!({"workflow": "echo"})).await;
    assert_eq!(status, 202);
    let (status, last) = publish("/v1/events", "e-3", event()).await;
    assert_eq!(status, 202);
    let of_the_key = async |events: &mut crate::support::Events| loop {
        let event = events.next().await.data;
        if event["type"] == "t" {
            break event["id"].clone();
        }
    };
    assert_eq!(of_the_key(&mut events).await, first["id"]);
    assert_eq!(of_the_key(&mut events).await, last["id"]);
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_second_process_with_a_memory_broker_is_refused_until_the_first_has_ended() {
    let database = crate::support::Database::create().await;
    let setup = || Setup::new().variable("DATABASE_URL", &database.url);
    let mut first = setup().start().await;
    first.healthy().await;
    let second = setup().start().await;
    second
        .health("it is refused", |health| {
            health["connections"]["details"]["event_broker"]["state"] == "unavailable"
        })
        .await;
    assert!(second.log().contains("another process on the same database"), "{}", second.log());
    let mut events = first.follow("", None).await;
    for subject in 0..32 {
        let event = cloud_event(&subject.to_string(), 0);
        assert_eq!(send_cloud_event(&second, &event).await.0, 202, "it is accepted all the same");
    }
    assert_eq!(events.ids(31).await.len(), 31);
    let last = events.next().await;

    crate::support::signal(&first.child, "-TERM");
    assert_eq!(first.exit_code().await, Some(0));
    second.healthy().await;
    let mut resumed = second.follow("", last.id.as_deref()).await;
    assert_eq!(send_cloud_event(&second, &cloud_event("a", 1)).await.0, 202);
    assert_eq!(resumed.ids(1).await, ["a-1"]);

    let again = second.kill().start().await;
    again.healthy().await;
    drop((first, again));
    database.drop().await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_memory_broker_that_was_paused_finds_another_in_its_place() {
    let database = crate::support::Database::create().await;
    let setup = || {
        Setup::new()
            .variable("DATABASE_URL", &database.url)
            .set("event_broker.probe.interval", "\"500ms\"")
    };
    let mut first = setup().start().await;
    first.healthy().await;
    let second = setup().start().await;
    crate::support::signal(&first.child, "-STOP");
    second.healthy().await;
    crate::support::signal(&first.child, "-CONT");
    // On waking, it closes connections that were idle for too long.
    first.http = crate::support::http_client().build().unwrap();
    first
        .health("it notices", |health| {
            health["connections"]["details"]["event_broker"]["state"] == "unavailable"
        })
        .await;
    let mut events = second.follow("", None).await;
    for service in [&first, &second] {
        let event = cloud_event(&service.base, 1);
        assert_eq!(send_cloud_event(service, &event).await.0, 202);
    }
    assert_eq!(events.ids(2).await.len(), 2);
    drop((first, second));
    database.drop().await;
}
