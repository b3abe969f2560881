//! `Idempotency-Key` where several replicas share one `PostgreSQL`, and where answers get lost.

use serde_json::{Value, json};

use crate::support::{Database, Link, Passing, Redis, Service, Setup, answer, eventually};

fn replica(redis: &Redis, database: &str) -> Setup {
    Setup::new().variable("REDIS_URL", &redis.url()).variable("DATABASE_URL", database)
}

/// Posts with a key; returns the status and the answer.
async fn post(service: &Service, path: &str, key: &str, body: &Value) -> (u16, Value) {
    let request = service.post(path).header("Idempotency-Key", key).json(body);
    let (status, answer) = answer(request).await;
    (status.as_u16(), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_comes_to_two_replicas_at_once_is_accepted_once() {
    let (redis, database) = tokio::join!(Redis::start(), Database::create());
    let start = || replica(&redis, &database.url).start();
    let (one, two) = tokio::join!(start(), start());
    tokio::join!(one.healthy(), two.healthy());
    let event = json!({"type": "keyed", "data": 1});
    let execution = json!({"workflow": "echo", "input": 1});
    let others = [json!({"type": "other"}), json!({"workflow": "echo", "input": 2})];
    let sent = [("/v1/events", &event), ("/v1/executions", &execution)];
    for ((path, body), other) in sent.into_iter().zip(&others) {
        let both = [&one, &two];
        let at_once = (0..40).map(|n| post(both[n % 2], path, "at-once", body));
        let answers = futures_util::future::join_all(at_once).await;
        let accepted: Vec<&Value> =
            answers.iter().filter(|(status, _)| *status == 202).map(|(_, answer)| answer).collect();
        assert!(!accepted.is_empty(), "{answers:?}");
        assert!(accepted.iter().all(|answer| answer["id"] == accepted[0]["id"]), "{answers:?}");
        let in_vain = answers.iter().filter(|(status, _)| *status != 202);
        in_vain.for_each(|(status, answer)| assert_eq!(*status, 409, "{answer}"));
        assert_eq!(post(&two, path, "at-once", other).await.0, 422);
    }
    let (first, _) = tokio::join!(
        post(&one, "/v1/events", "at-once", &event),
        post(&two, "/v1/executions", "at-once", &execution)
    );
    // Later requests, even to a new replica, get the same answers.
    drop((one, two));
    let three = start().await;
    three.healthy().await;
    assert_eq!(post(&three, "/v1/events", "at-once", &event).await, first);
    assert_eq!(post(&three, "/v1/executions", "at-once", &execution).await.0, 202);
    let events = "SELECT count(*) FROM outbox WHERE event LIKE '%\"type\":\"keyed\"%'";
    assert_eq!(database.value(events).await, 1);
    assert_eq!(database.value("SELECT count(*) FROM executions").await, 1);
    drop(three);
    database.drop().await;
}

/// Makes commits of accepted events take three seconds, even if their caller goes away.
const SLOW_COMMIT: &str = "\
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
    'BEGIN PERFORM pg_sleep(3); RETURN NULL; END'; \
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON outbox DEFERRABLE INITIALLY DEFERRED \
    FOR EACH ROW EXECUTE PROCEDURE slow()";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_unknown_and_the_key_makes_the_retry_safe() {
    let (redis, database) = tokio::join!(Redis::start(), Database::create());
    let link = Link::to(database.address()).await;
    let url = database.url_at(&link.address);
    let service = replica(&redis, &url).start().await;
    service.healthy().await;
    database.within(SLOW_COMMIT).await;
    let event = json!({"type": "lost", "data": 1});
    let lost = post(&service, "/v1/events", "lost", &event);
    let cut = async {
        let commits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event = 'PgSleep'";
        eventually("it is committed", async || (database.value(commits).await > 0).then_some(()))
            .await;
        link.set(Passing::Cut);
    };
    let ((status, problem), ()) = tokio::join!(lost, cut);
    assert_eq!(status, 503, "{problem}");
    assert!(problem["type"].as_str().unwrap().ends_with("outcome-unknown"), "{problem}");

    let events = "SELECT count(*) FROM outbox WHERE event LIKE '%\"type\":\"lost\"%'";
    eventually("it was committed all the same", async || {
        (database.value(events).await == 1).then_some(())
    })
    .await;
    database.within("DROP TRIGGER slow ON outbox").await;
    link.set(Passing::Open);
    service.healthy().await;
    let (status, again) = post(&service, "/v1/events", "lost", &event).await;
    assert_eq!(status, 202, "{again}");
    let with_its_id = format!("{events} AND event_id = '{}'", again["id"].as_str().unwrap());
    assert_eq!(database.value(&with_its_id).await, 1, "{again}");
    assert_eq!(database.value(events).await, 1);
    drop(service);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_another_transaction_holds_keeps_nobody_else_waiting() {
    let (redis, database) = tokio::join!(Redis::start(), Database::create());
    let service = replica(&redis, &database.url).start().await;
    service.healthy().await;
    let event = json!({"type": "t"});
    assert_eq!(post(&service, "/v1/events", "first", &event).await.0, 202);
    // To the other replicas, this is a replica that is paused inside its transaction.
    let (client, connection) =
        tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
    let mut paused = tokio::task::JoinSet::new();
    paused.spawn(connection);
    client
        .batch_execute(
            "BEGIN; INSERT INTO idempotency_keys \
             SELECT scope, 'held', body_hash, execution_id, answer, busy_until, expires_at \
             FROM idempotency_keys",
        )
        .await
        .unwrap();
    let others = async {
        for n in 0..20 {
            let request = service.post("/v1/events").json(&event);
            assert_eq!(answer(request).await.0, 202);
            let key = format!("other-{n}");
            assert_eq!(post(&service, "/v1/events", &key, &event).await.0, 202);
        }
    };
    let ((status, problem), ()) =
        tokio::join!(post(&service, "/v1/events", "held", &event), others);
    assert_eq!(status, 409, "{problem}");
    let broker = service.json("/v1/connections/database").await;
    assert_eq!(broker["circuit"], "closed", "the database is not to blame: {broker}");
    client.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(post(&service, "/v1/events", "held", &event).await.0, 202);
    drop((client, service));
    paused.join_next().await.unwrap().unwrap().unwrap();
    database.drop().await;
}
