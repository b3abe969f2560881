//! The last version before the current schema, and this one. `scripts/verify-upgrade` builds that
//! version from the history of this repository, and runs these tests.

use serde_json::{Value, json};

use crate::support::{
    Database, Redis, Service, Setup, cloud_event, eventually, ledger::from_the_beginning,
    send_cloud_event, variable,
};

fn previous(setup: Setup) -> Setup {
    setup.program(variable("TEST_PREVIOUS_PROGRAM").as_ref())
}

fn this(setup: Setup) -> Setup {
    setup.program(env!("CARGO_BIN_EXE_agentarea-api").as_ref())
}

fn setup(redis: &Redis) -> Setup {
    Setup::new()
        .variable("REDIS_URL", &redis.url())
        .set("workflows.slow.delay", "\"3s\"")
        .set("outbox.lease", "\"1s\"")
}

/// Starts an execution with a key; returns its id.
async fn execute(service: &Service, workflow: &str, key: &str) -> String {
    let body = json!({"workflow": workflow, "input": key});
    let request = service.post("/v1/executions").header("Idempotency-Key", key).json(&body);
    let (status, execution) = crate::support::answer(request).await;
    assert_eq!(status, 202, "{execution}");
    execution["id"].as_str().unwrap().to_owned()
}

/// What readers would write in another way, in one layout or another.
fn awkward(is_spaced: bool) -> String {
    let text = r#"{"z":12345678901234567890123,"a":1.10,"e":1E2,"s":"\u00e9","n":null}"#;
    if is_spaced { text.replace(',', " ,\n") } else { text.to_owned() }
}

/// Sends awkward work, some of it with keys; gives the id in each answer.
async fn send_awkward(service: &Service, is_spaced: bool) -> Vec<Value> {
    let data = awkward(is_spaced);
    let event = |id: &str, data: &str| {
        format!(r#"{{"id":"{id}","source":"ledger","type":"t","specversion":"1.0","data":{data}}}"#)
    };
    let (cloud, plain) = ("application/cloudevents+json", "application/json");
    let mut answers = Vec::new();
    for (path, kind, body, key) in [
        ("/v1/events", cloud, event("awkward", &data), None),
        ("/v1/events", cloud, event("null", "null"), None),
        ("/v1/events", cloud, event("awkward", &data), Some("cloud")),
        ("/v1/events", plain, format!(r#"{{"type":"short","data":{data}}}"#), Some("short")),
        ("/v1/events", plain, r#"{"type":"short"}"#.to_owned(), Some("bare")),
        ("/v1/executions", plain, format!(r#"{{"workflow":"echo","input":{data}}}"#), Some("run")),
    ] {
        let mut request = service.post(path).header("content-type", kind).body(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        let (status, answer) = crate::support::answer(request).await;
        assert_eq!(status, 202, "{answer}");
        answers.push(answer["id"].clone());
    }
    answers
}

async fn completes(service: &Service, id: &str, result: &str) {
    let ended = service.result(id).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("completed"), &json!(result)));
}

async fn publish(service: &Service, subject: &str, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let accepted = async || {
            let (status, _) = send_cloud_event(service, &cloud_event(subject, n)).await;
            (status == 202).then_some(())
        };
        eventually("it is accepted", accepted).await;
    }
}

/// This program delivers the events that the previous one accepted while Redis was down, and knows
/// its executions.
async fn is_taken_over(mut redis: Redis, setup: Setup) -> (Redis, Service) {
    let old = previous(setup).start().await;
    old.healthy().await;
    publish(&old, "a", 0..5).await;
    let ran = execute(&old, "echo", "ran").await;
    completes(&old, &ran, "ran").await;
    let sent = send_awkward(&old, false).await;
    redis.down();
    publish(&old, "a", 5..10).await;
    let runs = execute(&old, "slow", "runs").await;
    let setup = old.kill();

    let new = this(setup).start().await;
    redis.up().await;
    new.healthy().await;
    assert_eq!(execute(&new, "echo", "ran").await, ran, "its keys are known");
    assert_eq!(send_awkward(&new, true).await, sent, "the text of numbers is read as it read them");
    completes(&new, &ran, "ran").await;
    completes(&new, &runs, "runs").await;
    assert_eq!(send_cloud_event(&new, &cloud_event("a", 0)).await.0, 202, "a repetition");
    publish(&new, "a", 10..12).await;
    let mut events = from_the_beginning(&new).await;
    let expected: Vec<String> = (0..12).map(|n| format!("a-{n}")).collect();
    let mut seen: Vec<Value> = Vec::new();
    while seen.len() < expected.len() {
        let id = events.next().await.data["id"].clone();
        // The last event before the kill may be repeated.
        if id.as_str().unwrap().starts_with("a-") && !seen.contains(&id) {
            seen.push(id);
        }
    }
    assert_eq!(seen, expected);
    (redis, new)
}

#[tokio::test]
#[ignore = "scripts/verify-upgrade"]
async fn a_file_of_the_previous_program_is_taken_over_and_given_back() {
    let redis = Redis::start().await;
    let setup = setup(&redis);
    let (_redis, new) = is_taken_over(redis, setup).await;
    let again = previous(new.kill()).start().await;
    again.healthy().await;
    let mut events = again.follow("?type=t", None).await;
    publish(&again, "b", 0..3).await;
    assert_eq!(events.ids(3).await, ["b-0", "b-1", "b-2"]);
    let id = execute(&again, "echo", "again").await;
    completes(&again, &id, "again").await;
}

#[tokio::test]
#[ignore = "scripts/verify-upgrade"]
async fn both_programs_serve_one_database_while_replicas_are_exchanged() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let replica = |redis: &Redis| setup(redis).variable("DATABASE_URL", &database.url);
    let setup = replica(&redis);
    let (redis, new) = is_taken_over(redis, setup).await;
    let old = previous(replica(&redis)).start().await;
    old.healthy().await;
    let mut events = new.follow("?type=t", None).await;
    for subject in ["b", "c", "d", "e", "f", "g"] {
        publish(&old, subject, 0..1).await;
        publish(&new, subject, 1..2).await;
        publish(&old, subject, 2..3).await;
    }
    let mut seen = events.ids(18).await;
    seen.sort_by_key(|id| id.split('-').next().map(str::to_owned));
    let expected: Vec<String> = ["b", "c", "d", "e", "f", "g"]
        .iter()
        .flat_map(|s| (0..3).map(move |n| format!("{s}-{n}")))
        .collect();
    assert_eq!(seen, expected, "of each subject in its order");
    for (one, other) in [(&old, &new), (&new, &old)] {
        let key = &one.base;
        let id = execute(one, "echo", key).await;
        assert_eq!(execute(other, "echo", key).await, id);
        completes(other, &id, key).await;
    }
    drop((old, new));
    database.drop().await;
}
