//! The same program on real Redis, Temporal and `PostgreSQL`, as in production.

use serde_json::json;

use crate::support::{DEADLINE, Database, Redis, Setup, eventually, server};

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
async fn an_unreachable_execution_service_stores_nothing() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let port = crate::support::free_port();
    let service = fleet(&redis, &database, "nobody")
        .variable("TEMPORAL_ADDRESS", &format!("127.0.0.1:{port}"))
        .start()
        .await;
    service.health("the outage shows", |health| health["status"] == "degraded").await;
    let begin = std::time::Instant::now();
    let (status, problem) = service.send("/v1/executions", &json!({"workflow": "echo"})).await;
    assert_eq!(status, 503, "{problem}");
    assert!(begin.elapsed() < DEADLINE, "it fails fast");
    assert!(!problem.to_string().contains("127.0.0.1"), "{problem}");
    assert_eq!(service.json("/v1/executions").await["items"], json!([]));
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
