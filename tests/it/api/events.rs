//! Publishing and following events, on the memory broker.

use serde_json::{Value, json};

use crate::support::{Service, Setup, answer};

fn cloud_event(id: &str, kind: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/test", "type": kind, "subject": "s",
           "data": {"n": 1}, "traceparent": "00-11111111111111111111111111111111-2222222222222222-01"})
}

async fn publish(service: &Service, content_type: &str, body: &Value) -> (u16, Value) {
    let request =
        service.post("/v1/events").header("content-type", content_type).body(body.to_string());
    let (status, answer) = answer(request).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn every_form_of_event_arrives_at_a_follower() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;

    let (status, short) =
        service.send("/v1/events", &json!({"type": "a.b", "subject": "s", "data": [1]})).await;
    assert_eq!(status, 202, "{short}");
    let arrived = events.next().await;
    assert_eq!(arrived.data["id"], short["id"]);
    assert_eq!(arrived.data["type"], "a.b");
    assert_eq!(arrived.data["data"], json!([1]));
    assert_eq!(arrived.data["specversion"], "1.0");
    assert_eq!(arrived.name, None);

    let event = cloud_event("e-1", "task.created");
    let (status, one) = publish(&service, "application/cloudevents+json", &event).await;
    assert_eq!((status, &one["id"]), (202, &json!("e-1")));
    assert_eq!(events.next().await.data, event, "an event arrives as it was sent");

    let batch = json!([cloud_event("e-2", "a"), cloud_event("e-3", "b")]);
    let content_type = "application/cloudevents-batch+json; charset=utf-8";
    let (status, ids) = publish(&service, content_type, &batch).await;
    assert_eq!((status, &ids["ids"]), (202, &json!(["e-2", "e-3"])));
    assert_eq!(events.ids(2).await, ["e-2", "e-3"]);

    let direct = service.send("/v1/events?delivery=direct", &json!({"type": "d"})).await;
    assert_eq!(direct.0, 200);
    assert_eq!(events.next().await.data["id"], direct.1["id"]);
}

#[tokio::test]
async fn a_batch_is_all_or_nothing() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let mut bad = cloud_event("e-2", "a");
    bad["time"] = json!("yesterday");
    let batch = json!([cloud_event("e-1", "a"), bad, {"id": "x"}]);
    let (status, problem) = publish(&service, "application/cloudevents-batch+json", &batch).await;
    assert_eq!(status, 422, "{problem}");
    let indexes: Vec<_> =
        problem["invalid"].as_array().unwrap().iter().map(|item| &item["index"]).collect();
    assert_eq!(indexes, [1, 2]);
    service.send("/v1/events", &json!({"type": "after"})).await;
    assert_eq!(events.next().await.data["type"], "after", "nothing of the batch was published");
}

#[tokio::test]
async fn a_stream_starts_now_and_resumes_after_the_last_event() {
    let service = Setup::new().start().await;
    service.healthy().await;
    service.send("/v1/events?delivery=direct", &json!({"type": "before"})).await;
    let mut events = service.follow("", None).await;
    for n in 0..5 {
        service.send("/v1/events", &json!({"type": "t", "data": n})).await;
    }
    let first = events.next().await;
    assert_eq!(first.data["data"], 0, "events before the subscription do not show");
    drop(events);

    let mut resumed = service.follow("", first.id.as_deref()).await;
    for n in 1..5 {
        assert_eq!(resumed.next().await.data["data"], n);
    }
    service.send("/v1/events", &json!({"type": "live"})).await;
    assert_eq!(resumed.next().await.data["type"], "live", "history goes over into live events");
}

#[tokio::test]
async fn a_stream_that_cannot_resume_sends_a_gap() {
    let service = Setup::new().set("event_broker.memory.max_events", "3").start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    service.send("/v1/events", &json!({"type": "t", "data": 0})).await;
    let first = events.next().await;
    for n in 1..10 {
        service.send("/v1/events?delivery=direct", &json!({"type": "t", "data": n})).await;
        // The ring is so short that the service itself could fall behind.
        assert_eq!(events.next().await.data["data"], n);
    }
    for (last, reason) in [(first.id.as_deref(), "expired"), (Some("99999999999999-0"), "unknown")]
    {
        let mut resumed = service.follow("", last).await;
        let gap = resumed.next().await;
        assert_eq!(gap.name.as_deref(), Some("gap"));
        assert_eq!(gap.data["reason"], reason);
        assert!(gap.data.get("specversion").is_none(), "a gap is no CloudEvent");
        assert_eq!(resumed.next().await.data["data"], 7, "it goes on with what is still there");
    }
}

#[tokio::test]
async fn a_follower_that_does_not_read_is_told_and_dropped() {
    let service = Setup::new()
        .set("event_stream.buffer_events", "16")
        .set("event_stream.buffer_bytes", "64KiB")
        .start()
        .await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    // More than all socket buffers on the way can hold.
    let large = "x".repeat(900_000);
    for _ in 0..24 {
        let (status, _) = service.send("/v1/events", &json!({"type": "t", "data": large})).await;
        assert_eq!(status, 202);
    }
    let mut last = None;
    while let Some(sent) = events.try_next().await {
        last = Some(sent);
    }
    let last = last.expect("something arrived");
    assert_eq!(last.name.as_deref(), Some("gap"));
    assert_eq!(last.data["reason"], "slow");
}

#[tokio::test]
async fn filters_let_through_what_was_asked_for() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut of_type = service.follow("?type=task.*", None).await;
    let mut of_subject = service.follow("?subject=b", None).await;
    for (kind, subject) in [("task.created", "a"), ("other", "b"), ("task.ended", "b")] {
        service.send("/v1/events", &json!({"type": kind, "subject": subject})).await;
    }
    assert_eq!(of_type.next().await.data["type"], "task.created");
    assert_eq!(of_type.next().await.data["type"], "task.ended");
    assert_eq!(of_subject.next().await.data["type"], "other");
    assert_eq!(of_subject.next().await.data["type"], "task.ended");
}

#[tokio::test]
async fn bad_input_is_refused_and_nothing_is_published() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let json_type = "application/json";
    for (content_type, body, expected) in [
        (json_type, "{", 400),
        (json_type, "[]", 400),
        (json_type, r#"{"subject": "no type"}"#, 400),
        (json_type, r#"{"type": "a", "unknown": 1}"#, 400),
        (json_type, r#"{"type": ""}"#, 422),
        ("text/plain", "a", 415),
        ("application/cloudevents+json", r#"{"id": "1"}"#, 422),
    ] {
        let request =
            service.post("/v1/events").header("content-type", content_type).body(body.to_owned());
        let (status, problem) = answer(request).await;
        assert_eq!(status, expected, "{body}: {problem}");
        assert_eq!(problem["status"], expected);
    }
    let bad_id = service.get("/v1/events/stream").header("Last-Event-ID", "nonsense");
    assert_eq!(answer(bad_id).await.0, 400);
    service.send("/v1/events", &json!({"type": "good"})).await;
    assert_eq!(events.next().await.data["type"], "good");
}
