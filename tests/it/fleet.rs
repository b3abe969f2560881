//! The same program on real Redis, Temporal and `PostgreSQL`, as in production.

use serde_json::json;

use crate::support::{DEADLINE, Database, Link, Passing, Redis, Setup, answer, eventually, server};

fn fleet(redis: &Redis, database: &Database, queue: &str) -> Setup {
    Setup::new()
        .variable("REDIS_URL", &redis.url())
        .variable("DATABASE_URL", &database.url())
        .variable("TEMPORAL_ADDRESS", &server("TEST_TEMPORAL_ADDRESS"))
        .variable("TEMPORAL_TASK_QUEUE", queue)
        .set("execution_service.probe.timeout", "\"400ms\"")
        .set("workflows.slow.delay", "\"10m\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_request_on_the_fleet_either() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    crate::operator::reload_under_load(fleet(&redis, &database, &queue), 20).await;
    database.drop().await;
}

#[tokio::test]
async fn api_and_worker_do_the_same_on_redis_temporal_and_postgres() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    // Two replicas that start together migrate once and share what they are connected to.
    let (one, two) = tokio::join!(
        fleet(&redis, &database, &queue).start(),
        fleet(&redis, &database, &queue).start()
    );
    let (mut worker, worker_log) = fleet(&redis, &database, &queue).argument("worker").spawn();
    for service in [&one, &two] {
        service.healthy().await;
        let health = service.json("/health").await;
        let backends = ["database", "event_broker", "execution_service"]
            .map(|name| health["connections"]["details"][name]["backend"].clone());
        assert_eq!(backends, ["postgres", "redis", "temporal"]);
    }

    let mut events = two.follow("?type=execution.*", None).await;
    let id = one.execute(&json!({"workflow": "echo", "input": {"a": 1}})).await;
    let ended = two.result(&id).await;
    assert_eq!(
        (&ended["status"], &ended["result"]),
        (&json!("completed"), &json!({"a": 1})),
        "{ended}"
    );
    for expected in ["execution.accepted", "execution.started", "execution.completed"] {
        assert_eq!(events.next().await.data["type"], expected);
    }

    let slow = one.execute(&json!({"workflow": "slow"})).await;
    let cancelled = two.post(&format!("/v1/executions/{slow}/cancel")).send().await.unwrap();
    assert_eq!(cancelled.status(), 202);
    assert_eq!(one.result(&slow).await["status"], "cancelled");
    let slow = one.execute(&json!({"workflow": "slow"})).await;
    let ended = one.post(&format!("/v1/executions/{slow}/terminate")).send().await.unwrap();
    assert_eq!(ended.status(), 202);
    assert_eq!(two.result(&slow).await["status"], "terminated");

    crate::support::signal(&worker, "-TERM");
    let status = eventually("the worker ends", async || worker.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "{}", std::fs::read_to_string(worker_log).unwrap());
    drop((one, two));
    database.drop().await;
}

#[tokio::test]
async fn what_is_accepted_during_an_outage_of_temporal_runs_once_after_it() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let link = Link::to(&server("TEST_TEMPORAL_ADDRESS")).await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    let (mut worker, _log) = fleet(&redis, &database, &queue).argument("worker").spawn();
    let setup = fleet(&redis, &database, &queue)
        .variable("TEMPORAL_ADDRESS", &link.address)
        .set("executions.confirm_within", "\"1s\"");
    let service = setup.start().await;
    service.healthy().await;
    link.set(Passing::Cut);
    service.health("the outage shows", |health| health["status"] == "degraded").await;
    let begin = std::time::Instant::now();
    let waiting = service.execute(&json!({"workflow": "echo", "input": 7})).await;
    let unwanted = service.execute(&json!({"workflow": "slow"})).await;
    assert!(begin.elapsed() < DEADLINE, "an outage holds nobody up");
    let cancelled = service.post(&format!("/v1/executions/{unwanted}/cancel")).send().await;
    assert_eq!(cancelled.unwrap().status(), 202);
    let looked_at = eventually("nothing confirms it", async || {
        let execution = service.json(&format!("/v1/executions/{waiting}")).await;
        (execution["stale"] == true).then_some(execution)
    })
    .await;
    assert_eq!(looked_at["status"], "accepted");
    let (status, problem) =
        answer(service.post(&format!("/v1/executions/{waiting}/signals/x"))).await;
    assert_eq!(status, 503, "{problem}");

    // It outlives the process too.
    let service = service.kill().start().await;
    link.set(Passing::Open);
    let ended = service.result(&waiting).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("completed"), &json!(7)));
    assert_eq!(service.result(&unwanted).await["status"], "cancelled");
    let letters = service.json("/v1/dead-letters?destination=execution_service").await;
    assert_eq!(letters["items"], json!([]), "an outage makes no dead letters");
    crate::support::signal(&worker, "-TERM");
    eventually("the worker ends", async || worker.try_wait().unwrap()).await;
    drop(service);
    database.drop().await;
}

#[tokio::test]
async fn a_namespace_or_database_that_does_not_exist_is_named() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    for (variable, value, named) in [
        ("TEMPORAL_NAMESPACE", "no-such-namespace".to_owned(), "no-such-namespace"),
        ("DATABASE_URL", database.url().replace("it_", "nowhere_"), "nowhere_"),
    ] {
        let connection = if variable == "DATABASE_URL" { "database" } else { "execution_service" };
        let setup = fleet(&redis, &database, "nobody")
            .variable(variable, &value)
            .set(&format!("{connection}.startup"), "\"fail\"")
            .set(&format!("{connection}.startup_timeout"), "\"3s\"");
        let (code, log) = setup.run().await;
        assert_eq!(code, Some(69), "{log}");
        assert!(log.contains(named), "{named} is missing in\n{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
    database.drop().await;
}
