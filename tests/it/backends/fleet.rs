//! The same program on real Redis, Temporal and `PostgreSQL`, as in production.

use serde_json::json;

use crate::support::{
    DEADLINE, Database, Link, Passing, Redis, Setup, Temporal, answer, eventually, signal, variable,
};

/// Settings that all processes share, with a task queue of their own.
pub(crate) fn fleet(redis: &Redis, database: &Database, queue: &str) -> Setup {
    Setup::new()
        .variable("REDIS_URL", &redis.url())
        .variable("DATABASE_URL", &database.url)
        .variable("TEMPORAL_ADDRESS", &variable("TEST_TEMPORAL_ADDRESS"))
        .variable("TEMPORAL_TASK_QUEUE", queue)
        .set("execution_service.probe.timeout", "\"400ms\"")
        .set("workflows.slow.delay", "\"10m\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_request_on_the_fleet_either() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    crate::api::operator::reload_under_load(fleet(&redis, &database, &queue), 20).await;
    database.drop().await;
}

#[tokio::test]
async fn api_and_worker_do_the_same_on_redis_temporal_and_postgres() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    // Two replicas that start together migrate once and share their backends.
    let (one, two) = tokio::join!(
        fleet(&redis, &database, &queue).start(),
        fleet(&redis, &database, &queue).start()
    );
    let mut worker = fleet(&redis, &database, &queue).argument("worker").launch();
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

    crate::faults::awkward::json_arrives_as_it_was_sent(&two).await;

    let slow = one.execute(&json!({"workflow": "slow"})).await;
    let cancelled = two.post(&format!("/v1/executions/{slow}/cancel")).send().await.unwrap();
    assert_eq!(cancelled.status(), 202);
    assert_eq!(one.result(&slow).await["status"], "cancelled");
    let slow = one.execute(&json!({"workflow": "slow"})).await;
    let ended = one.post(&format!("/v1/executions/{slow}/terminate")).send().await.unwrap();
    assert_eq!(ended.status(), 202);
    assert_eq!(two.result(&slow).await["status"], "terminated");

    signal(&worker.child, "-TERM");
    assert_eq!(worker.exit_code().await, Some(0), "{}", worker.log());
    drop((one, two));
    database.drop().await;
}

#[tokio::test]
async fn executions_accepted_during_an_outage_of_temporal_run_once_after_it() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let link = Link::to(&variable("TEST_TEMPORAL_ADDRESS")).await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    let mut worker = fleet(&redis, &database, &queue).argument("worker").launch();
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
    let early = service.post(&format!("/v1/executions/{waiting}/signals/x")).send().await.unwrap();
    assert_eq!(early.status(), 409, "there is nothing to send it to yet");
    assert_eq!(early.headers()["retry-after"], "1");

    // The accepted execution outlives the process, too.
    let service = service.kill().start().await;
    link.set(Passing::Open);
    let ended = service.result(&waiting).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("completed"), &json!(7)));
    assert_eq!(service.result(&unwanted).await["status"], "cancelled");
    let letters = service.json("/v1/dead-letters?destination=execution_service").await;
    assert_eq!(letters["items"], json!([]), "an outage makes no dead letters");
    signal(&worker.child, "-TERM");
    worker.exit_code().await;
    drop(service);
    database.drop().await;
}

#[tokio::test]
async fn a_replica_cut_off_from_temporal_leaves_following_to_the_others() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    let link = Link::to(&variable("TEST_TEMPORAL_ADDRESS")).await;
    let queue = format!("it-{}", uuid::Uuid::now_v7());
    let mut worker = fleet(&redis, &database, &queue).argument("worker").launch();
    let replica = || fleet(&redis, &database, &queue).set("executions.lease", "\"3s\"");
    let cut_off = replica().variable("TEMPORAL_ADDRESS", &link.address).start().await;
    cut_off.healthy().await;
    eventually("it follows", async || {
        let followers = "SELECT count(*) FROM roles WHERE name = 'follower'";
        (database.value(followers).await == 1).then_some(())
    })
    .await;
    let other = replica().start().await;
    other.healthy().await;
    link.set(Passing::Cut);
    cut_off.health("the outage shows", |health| health["status"] == "degraded").await;
    let id = other.execute(&json!({"workflow": "echo", "input": 7})).await;
    eventually("its end is known to who cannot ask for it", async || {
        let execution = cut_off.json(&format!("/v1/executions/{id}")).await;
        (execution["status"] == "completed").then_some(())
    })
    .await;
    signal(&worker.child, "-TERM");
    worker.exit_code().await;
    drop((cut_off, other));
    database.drop().await;
}

/// Packets are dropped without closing any connection, as by a firewall that has forgotten them.
#[tokio::test(flavor = "multi_thread")]
async fn silently_dead_links_are_replaced() {
    let (redis, database) = tokio::join!(Redis::start(), Database::create());
    let to_redis = Link::to(redis.url().trim_start_matches("redis://")).await;
    let to_postgres = Link::to(database.address()).await;
    let to_temporal = Link::to(&variable("TEST_TEMPORAL_ADDRESS")).await;
    let service = fleet(&redis, &database, "nobody")
        .variable("REDIS_URL", &format!("redis://{}", to_redis.address))
        .variable("DATABASE_URL", &database.url_at(&to_postgres.address))
        .variable("TEMPORAL_ADDRESS", &to_temporal.address)
        .start()
        .await;
    service.healthy().await;
    let mut events = service.follow("?type=t", None).await;
    // Pooled connections that are idle when the links die.
    let looks = (0..8).map(|_| answer(service.get("/v1/executions")));
    futures_util::future::join_all(looks).await;
    let links = [
        ("event_broker", &to_redis),
        ("database", &to_postgres),
        ("execution_service", &to_temporal),
    ];
    for (n, (name, link)) in links.into_iter().enumerate() {
        link.set(Passing::Stalled);
        let is = |health: &serde_json::Value, state: &str| {
            health["connections"]["services"][name] == state
        };
        service.health(&format!("{name} is out"), |health| is(health, "unavailable")).await;
        link.set(Passing::Open);
        service.healthy().await;
        for _ in 0..8 {
            let begin = std::time::Instant::now();
            let (status, found) = answer(service.get("/v1/executions")).await;
            let took = begin.elapsed();
            assert!(status == 200 && took.as_secs() < 2, "{name}: {status} {found} {took:?}");
        }
        let (status, answered) = service.send("/v1/events", &json!({"type": "t", "data": n})).await;
        assert_eq!(status, 202, "{answered}");
        assert_eq!(events.next().await.data["data"], n, "after {name} came back");
    }
    drop(service);
    database.drop().await;
}

/// Temporal forgets ended workflows after the retention of the namespace, and could start them
/// again.
#[tokio::test]
async fn executions_tried_longer_ago_than_half_the_retention_become_dead_letters() {
    let temporal = Temporal::start().await;
    let namespace = format!("it-{}", uuid::Uuid::now_v7());
    let creating = ["operator", "namespace", "create", "--retention", "24h", "-n", &namespace];
    eventually("the namespace is made", async || {
        temporal.ask(&creating).contains("registered").then_some(())
    })
    .await;
    let (redis, database) = tokio::join!(Redis::start(), Database::create());
    let link = Link::to(&temporal.address()).await;
    let service = fleet(&redis, &database, "nobody")
        .variable("TEMPORAL_ADDRESS", &link.address)
        .variable("TEMPORAL_NAMESPACE", &namespace)
        .set("executions.lease", "\"2s\"")
        .start()
        .await;
    service.healthy().await;
    // A request to a silent server may have arrived, and the process dies before it knows.
    link.set(Passing::Stalled);
    for id in ["soon-enough", "too-late"] {
        service.execute(&json!({"workflow": "echo", "id": id})).await;
    }
    let stopped = service.kill();
    for (id, hours) in [("soon-enough", 11_i64), ("too-late", 13)] {
        let earlier = hours * 3_600_000_000;
        database
            .within(&format!(
                "UPDATE executions SET tried_at = tried_at - {earlier}, \
                 created_at = created_at - {earlier} WHERE id = '{id}'"
            ))
            .await;
    }
    link.set(Passing::Open);
    let service = stopped.start().await;
    let status = async |id: &str, wanted: &str| {
        eventually(&format!("{id} is {wanted}"), async || {
            let execution = service.json(&format!("/v1/executions/{id}")).await;
            (execution["status"] == wanted).then_some(execution)
        })
        .await
    };
    status("soon-enough", "running").await;
    let refused = status("too-late", "failed").await;
    assert!(refused["error"].as_str().unwrap().starts_with("start_rejected"), "{refused}");
    let started = || temporal.ask(&["workflow", "list", "-n", &namespace, "--output", "json"]);
    assert!(!started().contains("too-late"));

    let letters = service.json("/v1/dead-letters?destination=execution_service").await;
    let letter = letters["items"][0]["id"].as_str().unwrap();
    let redrive = service.post(&format!("/v1/dead-letters/{letter}/redrive"));
    let (code, answered) = answer(redrive).await;
    assert!(code.is_success(), "{code} {answered}");
    status("too-late", "running").await;
    eventually("it was started", async || started().contains("too-late").then_some(())).await;
    drop(service);
    database.drop().await;
}

#[tokio::test]
async fn a_namespace_or_database_that_does_not_exist_is_named() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    for (variable, value, named) in [
        ("TEMPORAL_NAMESPACE", "no-such-namespace".to_owned(), "no-such-namespace"),
        ("DATABASE_URL", database.url.replace("test_", "nowhere_"), "nowhere_"),
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
