//! Awkward input: deep, large, unreadable. Accepted events are delivered all the same; those that
//! cannot be delivered do not block others.

use serde_json::{Value, json};

use crate::support::{Service, Setup, cloud_event, eventually, send_cloud_event};

const ONE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
const SHORT: &str = "application/json";

fn nested(levels: usize) -> Value {
    (1..levels).fold(json!([]), |inner, _| json!([inner]))
}

/// Written as text, because not every JSON writer supports this depth.
fn brackets(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

async fn post(service: &Service, path: &str, kind: &str, body: String) -> (u16, Value) {
    let request = service.post(path).header("content-type", kind).body(body);
    let (status, answer) = crate::support::answer(request).await;
    (status.as_u16(), answer)
}

#[tokio::test]
async fn json_is_accepted_a_hundred_levels_deep_and_refused_deeper() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let cloud = |n: usize, levels: usize| {
        let event = cloud_event("deep", n).to_string();
        event.replace(&format!("\"data\":{n}"), &format!("\"data\":{}", brackets(levels)))
    };
    let of_executions =
        |levels| format!(r#"{{"workflow": "echo", "input": {}}}"#, brackets(levels));
    let of_events = |levels| format!(r#"{{"type": "t", "data": {}}}"#, brackets(levels));
    let id = service.execute(&json!({"workflow": "echo", "input": nested(100)})).await;
    assert_eq!(post(&service, "/v1/events", ONE, cloud(1, 100)).await.0, 202);
    assert_eq!(post(&service, "/v1/events", SHORT, of_events(100)).await.0, 202);
    for levels in [101, 102, 126, 127, 128, 100_000] {
        let cases = [
            ("/v1/executions", SHORT, of_executions(levels)),
            ("/v1/events", ONE, cloud(2, levels)),
            ("/v1/events", BATCH, format!("[{},{}]", cloud(3, 1), cloud(4, levels))),
            ("/v1/events", SHORT, of_events(levels)),
            ("/v1/events?delivery=direct", SHORT, of_events(levels)),
            (&*format!("/v1/executions/{id}/signals/s"), SHORT, brackets(levels)),
            (&*format!("/v1/executions/{id}/queries/q"), SHORT, brackets(levels)),
        ];
        for (path, kind, body) in cases {
            let (status, problem) = post(&service, path, kind, body).await;
            assert_eq!(status, 422, "{levels} levels at {path}: {problem}");
            assert!(problem.to_string().contains("nested deeper than 100"), "{problem}");
        }
    }
    let execution = service.result(&id).await;
    assert_eq!((&execution["status"], &execution["result"]), (&json!("completed"), &nested(100)));
    // All accepted events arrive, and the last one comes last.
    assert_eq!(send_cloud_event(&service, &cloud_event("deep", 5)).await.0, 202);
    let mut arrived = Vec::new();
    while arrived.len() < 6 {
        arrived.push(events.next().await.data);
    }
    let completed = arrived.iter().find(|event| event["type"] == "execution.completed").unwrap();
    assert_eq!(completed["data"]["result"], nested(100));
    assert!(arrived.iter().any(|event| event["id"] == "deep-1" && event["data"] == nested(100)));
    assert!(arrived.iter().any(|event| event["id"] == "deep-5"));
}

/// Numbers, an order, escapes and white space that readers would not write in the same way.
const AS_SENT: &str =
    r#"{"z":1234567890123456789012345,"a":1.10,"d":1e-400,"e":1E2, "s":"\u00e9\/", "n":[null ]}"#;

/// An event as a client writes it, which is part of a trace already.
fn event_as_sent(id: &str) -> String {
    format!(
        r#"{{"type":"as-sent", "data" : {AS_SENT},"id":"{id}","source":"ledger",
        "traceparent":"00-11111111111111111111111111111111-2222222222222222-01","specversion":"1.0"}}"#
    )
}

/// What clients send arrives as they sent it, whatever stores it and passes it on.
pub(crate) async fn json_arrives_as_it_was_sent(service: &Service) {
    let mut events = service.follow("?type=as-sent", None).await;
    for (n, path) in ["/v1/events", "/v1/events?delivery=direct"].iter().enumerate() {
        let event = event_as_sent(&format!("as-sent-{n}"));
        assert!(post(service, path, ONE, event.clone()).await.0 < 300);
        assert_eq!(events.next().await.text, event);
        for data in [AS_SENT, "null", "1.10"] {
            let short = format!(r#"{{"type": "as-sent", "data": {data} }}"#);
            assert!(post(service, path, SHORT, short).await.0 < 300);
            let arrived = events.next().await.text;
            assert!(arrived.contains(&format!("\"data\":{data}")), "{arrived}");
        }
    }

    let mut events = service.follow("?type=execution.completed", None).await;
    let execution = format!(r#"{{"workflow": "echo", "input":{AS_SENT}}}"#);
    let (status, answer) = post(service, "/v1/executions", SHORT, execution).await;
    assert_eq!(status, 202, "{answer}");
    let id = answer["id"].as_str().unwrap();
    service.result(id).await;
    for path in [&*format!("/v1/executions/{id}"), "/v1/executions?limit=1"] {
        let text = service.get(path).send().await.unwrap().text().await.unwrap();
        for member in ["input", "result"] {
            assert!(text.contains(&format!("\"{member}\":{AS_SENT}")), "{text}");
        }
    }
    let completed = events.next().await.text;
    assert!(completed.contains(&format!("\"result\":{AS_SENT}")), "{completed}");
}

#[tokio::test]
async fn a_client_s_json_arrives_as_it_was_sent() {
    let service = Setup::new().start().await;
    service.healthy().await;
    json_arrives_as_it_was_sent(&service).await;
}

#[tokio::test]
async fn a_repetition_in_another_layout_is_recognised_and_one_with_other_digits_is_not() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("?type=as-sent", None).await;
    let event = event_as_sent("twice");
    let again = event.replace(' ', "").replace(r"\u00e9\/", "é/");
    let again = again.replacen(r#""type":"as-sent","#, "", 1);
    let again = again.replacen('{', r#"{"subject":null,"#, 1);
    let again = format!(r#"{},"type":"as-sent"}}"#, again.strip_suffix('}').unwrap());
    let other = event.replace("1.10", "1.1");
    assert_eq!(post(&service, "/v1/events", ONE, event).await.0, 202);
    assert_eq!(post(&service, "/v1/events", ONE, again).await.0, 202);
    assert_eq!(post(&service, "/v1/events", ONE, other).await.0, 409);
    assert_eq!(post(&service, "/v1/events", ONE, event_as_sent("last")).await.0, 202);
    assert_eq!(events.ids(2).await, ["twice", "last"]);

    let keyed = async |path: &str, body: String| {
        let request = service.post(path).header("content-type", SHORT);
        let request = request.header("Idempotency-Key", "as-sent").body(body);
        let (status, answer) = crate::support::answer(request).await;
        (status.as_u16(), answer["id"].clone())
    };
    for (path, body) in [
        ("/v1/events", format!(r#"{{"type":"keyed","data":{AS_SENT}}}"#)),
        ("/v1/executions", format!(r#"{{"workflow":"echo","input":{AS_SENT}}}"#)),
    ] {
        let first = keyed(path, body.clone()).await;
        assert_eq!(first.0, 202);
        assert_eq!(keyed(path, body.replace(':', " :\n")).await, first);
        assert_eq!(keyed(path, body.replace("1.10", "1.1")).await.0, 422);
    }
}

/// A statement that adds an event that cannot be read.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn unreadable_event(id: &str, lane: i32) -> String {
    format!(
        "INSERT INTO outbox (lane, source, event_id, content_hash, event, state, created_at,
         refusals) VALUES ({lane}, 's', '{id}', 'h', '{{\"broken', 'pending', 1, 0);"
    )
}

/// A statement that adds an execution that cannot be read.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn unreadable_execution(id: &str, status: &str, backend: &str) -> String {
    format!(
        "INSERT INTO executions
         (id, workflow, status, created_at, backend, request_id, definition, input)
         VALUES ('{id}', 'echo', '{status}', 1, '{backend}', '{id}',
         '{{\"kind\":\"echo\",\"delay\":{{\"secs\":0,\"nanos\":0}}}}', '{{\"broken');"
    )
}

/// Statements that add an event to each lane, an accepted and a running execution, of which none
/// can be read.
#[cfg(feature = "sqlite")]
fn insert_unreadable() -> String {
    let events = (0..16).map(|lane| unreadable_event(&format!("broken-{lane}"), lane));
    let executions = [("waits", "accepted"), ("runs", "running")]
        .map(|(id, status)| unreadable_execution(id, status, "embedded"));
    events.chain(executions).collect()
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn unreadable_rows_become_dead_letters_with_a_reason_and_do_not_block_others() {
    use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("?type=t", None).await;
    let file = service.path().join("data/agentarea.db");
    let mut other = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    let insert = insert_unreadable();
    let insert = format!("PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE; {insert} COMMIT");
    other.batch_execute(&insert).unwrap();
    for n in 0..40 {
        let event = cloud_event(&format!("subject-{n}"), n);
        assert_eq!(send_cloud_event(&service, &event).await.0, 202);
    }
    let mut arrived: Vec<i64> = Vec::new();
    while arrived.len() < 40 {
        arrived.push(events.next().await.data["data"].as_i64().unwrap());
    }
    arrived.sort_unstable();
    assert_eq!(arrived, (0..40).collect::<Vec<i64>>());
    let id = service.execute(&json!({"workflow": "echo", "input": "readable"})).await;
    assert_eq!(service.result(&id).await["result"], "readable");

    let letters = async |destination: &str| {
        let path = format!("/v1/dead-letters?destination={destination}&limit=200");
        service.json(&path).await["items"].as_array().unwrap().clone()
    };
    let of_events = letters("event_broker").await;
    assert_eq!(of_events.len(), 16, "{of_events:?}");
    for letter in &of_events {
        assert!(letter["error"].as_str().unwrap().contains("cannot be read"), "{letter}");
    }
    let waits = eventually("the execution is set aside", async || {
        letters("execution_service").await.first().cloned()
    })
    .await;
    assert_eq!(waits["execution"]["id"], "waits");
    assert!(waits["error"].as_str().unwrap().contains("cannot be read"), "{waits}");
    let listed = service.json("/v1/executions").await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 3, "{listed}");
    // Its backend does not know the execution that is recorded as running; that its input cannot be
    // read does not matter.
    let runs = service.result("runs").await;
    assert!(runs["error"].as_str().unwrap().contains("lost_by_backend"), "{runs}");
    let told = service.log().matches("it is a dead letter").count();
    assert_eq!(told, 17, "each is told once:\n{}", service.log());
}

#[cfg(feature = "redis")]
mod with_redis {
    use super::*;
    use crate::support::{Redis, free_port, metric};

    const LIMIT: u64 = 512 << 20;

    /// The peak memory of the program, in bytes.
    fn peak_memory(service: &Service) -> u64 {
        service.memory_kib("VmHWM") << 10
    }

    /// JSON that needs far more memory when parsed than as text.
    fn dense(bytes: usize) -> String {
        format!("[{}{{}}]", r#"{"a":0},"#.repeat(bytes / 8))
    }

    async fn accept(service: &Service, events: usize, bytes: usize) {
        let data = dense(bytes);
        for n in 0..events {
            let body = format!(r#"{{"type": "t", "subject": "{n}", "data": {data}}}"#);
            let (status, answer) = post(service, "/v1/events", "application/json", body).await;
            assert_eq!(status, 202, "{answer}");
        }
    }

    /// Waits until the outage has lasted for twenty more probes.
    async fn outage_lasts(service: &Service) {
        let failed = async || {
            let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
            let series = r#"probes_total{connection="event_broker",outcome="failure"} "#;
            let count = text.lines().find_map(|line| line.split_once(series));
            count.unwrap().1.parse::<f64>().unwrap()
        };
        let before = failed().await;
        eventually("probes fail", async || (failed().await > before + 20.0).then_some(())).await;
    }

    #[tokio::test]
    async fn memory_stays_bounded_with_any_backlog_and_a_killed_process_delivers() {
        let mut redis = Redis::start().await;
        let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
        service.healthy().await;
        redis.down();
        accept(&service, 50, 880 << 10).await;
        outage_lasts(&service).await;
        assert!(peak_memory(&service) < LIMIT, "{} bytes", peak_memory(&service));
        let service = service.kill().start().await;
        outage_lasts(&service).await;
        redis.up().await;
        eventually("all of it is delivered", async || {
            let delivered = metric(&service, "agentarea_outbox_delivered_total").await;
            (delivered >= 50.0).then_some(())
        })
        .await;
        assert!(peak_memory(&service) < LIMIT, "{} bytes", peak_memory(&service));
    }

    #[tokio::test]
    async fn memory_is_flat_while_the_broker_has_never_been_reachable() {
        let service = Setup::new()
            .variable("REDIS_URL", &format!("redis://127.0.0.1:{}", free_port()))
            .set("event_broker.redis.wire", "\"agentarea\"")
            .start()
            .await;
        service.health("it serves", |health| health["status"] == "degraded").await;
        accept(&service, 200, 100_000).await;
        outage_lasts(&service).await;
        let peak = peak_memory(&service);
        assert!(peak < LIMIT, "{peak} bytes");
        outage_lasts(&service).await;
        let later = peak_memory(&service);
        assert!(later < peak + (16 << 20), "{peak} bytes, later {later}");
    }

    #[tokio::test]
    async fn a_second_loss_is_noticed_before_anything_new_was_delivered() {
        let mut redis = Redis::start_with(&["--appendonly", "no"]).await;
        let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
        service.healthy().await;
        let deliver = async |from: usize, to: usize| {
            for n in from..to {
                let event = cloud_event(&format!("subject-{n}"), n);
                assert_eq!(send_cloud_event(&service, &event).await.0, 202);
            }
            let all = f64::from(u32::try_from(to).unwrap());
            eventually("they are delivered", async || {
                (metric(&service, "agentarea_outbox_delivered_total").await >= all).then_some(())
            })
            .await;
        };
        deliver(0, 10).await;
        let _saved: String = redis.command(&["SAVE"]).await;
        deliver(10, 20).await;
        redis.restart_with(&["--maxmemory", "1"]).await;
        eventually("the first loss is noticed", async || {
            (metric(&service, "agentarea_outbox_rows").await >= 10.0).then_some(())
        })
        .await;
        redis.forget_everything();
        redis.restart_with(&[]).await;
        eventually("all of them come back", async || {
            let length: i64 = redis.command(&["XLEN", "agentarea:events"]).await;
            (length >= 20).then_some(())
        })
        .await;
    }
}
