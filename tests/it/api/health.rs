//! The rows of the health table, on the real program.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::Setup;

fn status(health: &Value) -> &str {
    health["status"].as_str().unwrap()
}

#[tokio::test]
async fn healthy_on_embedded_defaults_with_the_guides_keys() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let response = service.get("/health").send().await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let health: Value = response.json().await.unwrap();
    assert_eq!(health["service"], "agentarea-api");
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["timestamp"].as_str().unwrap().ends_with('Z'));
    let connections = &health["connections"];
    assert_eq!(connections["environment"], "development");
    assert_eq!(connections["status"], "healthy");
    for name in ["event_broker", "execution_service", "database"] {
        assert_eq!(connections["services"][name], "initialized");
        assert_eq!(connections["details"][name]["probe"]["ok"], true);
    }
    assert_eq!(connections["connection_reuse"], true);
    assert_eq!(connections["singleton_pattern"], true);
    for path in ["/livez", "/readyz", "/livez?verbose", "/readyz?verbose"] {
        assert_eq!(service.get(path).send().await.unwrap().status(), 200, "{path}");
    }
    let connection = service.json("/v1/connections/database").await;
    let states: Vec<&Value> =
        connection["timeline"].as_array().unwrap().iter().map(|change| &change["to"]).collect();
    assert_eq!(states, ["initializing", "initialized"]);
    assert_eq!(service.get("/v1/connections/x").send().await.unwrap().status(), 404);
}

/// GET reaches the operation by a shorter path than HEAD.
#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let get = service.get("/health").send().await.unwrap();
    let head = service.http.head(format!("{}/health", service.base)).send().await.unwrap();
    assert_eq!((head.status(), get.status()), (StatusCode::OK, StatusCode::OK));
    for name in ["content-type", "cache-control", "x-content-type-options"] {
        assert_eq!(head.headers()[name], get.headers()[name], "{name}");
    }
    assert!(head.text().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lazy_connection_that_nobody_needed_is_fine() {
    let service = Setup::new()
        .set("event_broker.startup", "\"lazy\"")
        .set("execution_service.startup", "\"lazy\"")
        .start()
        .await;
    service.health("the service is healthy", |health| status(health) == "healthy").await;
    let health = service.json("/health").await;
    assert_eq!(health["connections"]["services"]["event_broker"], "not_initialized");
    let (status, _) = service.send("/v1/events?delivery=direct", &json!({"type": "x"})).await;
    assert_eq!(status, 200, "the first request makes it");
    let health = service.json("/health").await;
    assert_eq!(health["connections"]["services"]["event_broker"], "initialized");
}

#[tokio::test]
async fn a_database_that_never_worked_is_unhealthy_and_not_ready() {
    let setup = Setup::new();
    // A folder is in the place of the file.
    std::fs::create_dir_all(setup.path().join("data/agentarea.db")).unwrap();
    let service = setup.start().await;
    let health = service.health("the outage shows", |health| status(health) == "unhealthy").await;
    assert_eq!(health["connections"]["services"]["database"], "unavailable");
    assert_eq!(service.get("/health").send().await.unwrap().status(), 200);
    assert_eq!(service.get("/livez").send().await.unwrap().status(), 200);
    assert_eq!(service.get("/readyz").send().await.unwrap().status(), 503);
    let (refused, problem) = service.send("/v1/executions", &json!({"workflow": "echo"})).await;
    assert_eq!(refused, 503);
    assert!(!problem.to_string().contains("agentarea.db"), "no path reaches the client: {problem}");

    std::fs::remove_dir(service_path(&service)).unwrap();
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "echo"})).await;
    assert_eq!(service.result(&id).await["status"], "completed");
}

fn service_path(service: &crate::support::Service) -> std::path::PathBuf {
    service.path().join("data/agentarea.db")
}

#[tokio::test]
async fn the_mapping_of_statuses_is_the_operators() {
    let setup = Setup::new().set("health.http_status.unhealthy", "500");
    std::fs::create_dir_all(setup.path().join("data/agentarea.db")).unwrap();
    let service = setup.start().await;
    service.health("the outage shows", |health| status(health) == "unhealthy").await;
    assert_eq!(service.get("/health").send().await.unwrap().status(), 500);
}

#[tokio::test]
async fn draining_is_reported_before_the_listener_closes() {
    let mut service = Setup::new().set("server.drain_delay", "\"2s\"").start().await;
    service.healthy().await;
    crate::support::signal(&service.child, "-TERM");
    let health = service.health("draining shows", |health| status(health) == "draining").await;
    assert_eq!(status(&health), "draining");
    let response = service.get("/health").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["connection"]),
        (503, &"close".parse().unwrap())
    );
    assert_eq!(service.get("/livez").send().await.unwrap().status(), 200);
    assert_eq!(service.get("/readyz").send().await.unwrap().status(), 503);
    let (status, _) = service.send("/v1/events", &json!({"type": "x"})).await;
    assert_eq!(status, 202, "it still serves");
    assert_eq!(service.exit_code().await, Some(0));
}

#[cfg(feature = "redis")]
mod with_redis {
    use std::time::Duration;

    use super::*;
    use crate::support::{Redis, eventually};

    #[tokio::test]
    async fn an_outage_of_the_broker_degrades_and_heals_by_itself() {
        let mut redis = Redis::start().await;
        let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
        service.healthy().await;
        for outage in 1..=2_u64 {
            redis.down();
            let health = service.health("the outage shows", |h| status(h) == "degraded").await;
            assert_eq!(health["connections"]["services"]["event_broker"], "unavailable");
            assert_eq!(health["connections"]["status"], "degraded");
            assert_eq!(service.get("/readyz").send().await.unwrap().status(), 200);
            let event = json!({"type": "x"});
            let (refused, _) = service.send("/v1/events?delivery=direct", &event).await;
            assert_eq!(refused, 503);
            let (accepted, _) = service.send("/v1/events", &event).await;
            assert_eq!(accepted, 202, "it is stored until the broker is back");
            redis.up().await;
            service.healthy().await;
            let health = service.json("/health").await;
            let recoveries = &health["connections"]["details"]["event_broker"]["recoveries"];
            assert!(recoveries.as_u64().unwrap() >= outage, "{recoveries} after {outage} outages");
            let (accepted, _) = service.send("/v1/events", &json!({"type": "x"})).await;
            assert_eq!(accepted, 202);
        }
        let changes = service.log().lines().filter(|line| line.contains("event_broker is")).count();
        assert!(changes <= 8, "an outage is logged when it begins and ends:\n{}", service.log());
    }

    #[tokio::test]
    async fn a_required_broker_makes_the_instance_unready_but_not_dead() {
        let mut redis = Redis::start().await;
        let service = Setup::new()
            .variable("REDIS_URL", &redis.url())
            .set("event_broker.required", "true")
            .start()
            .await;
        service.healthy().await;
        redis.down();
        service.health("the outage shows", |health| status(health) == "unhealthy").await;
        for (path, expected) in [("/health", 200), ("/livez", 200), ("/readyz", 503)] {
            assert_eq!(service.get(path).send().await.unwrap().status(), expected, "{path}");
        }
        redis.up().await;
        service.healthy().await;
        assert_eq!(service.get("/readyz").send().await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn a_frozen_backend_fails_fast_and_health_answers_from_memory() {
        let redis = Redis::start().await;
        let service = Setup::new()
            .variable("REDIS_URL", &redis.url())
            .set("event_broker.timeout.attempt", "\"300ms\"")
            .start()
            .await;
        service.healthy().await;
        redis.freeze(true);
        let event = json!({"type": "x"});
        let (refused, problem) = service.send("/v1/events?delivery=direct", &event).await;
        assert_eq!(refused, 503);
        assert!(problem["type"].as_str().unwrap().ends_with("outcome-unknown"), "{problem}");
        let answered = tokio::time::timeout(Duration::from_secs(5), service.json("/health")).await;
        assert!(answered.is_ok());
        service.health("the outage shows", |health| status(health) == "degraded").await;
        redis.freeze(false);
        service.healthy().await;
    }

    #[tokio::test]
    async fn starting_is_reported_until_a_required_connection_is_decided() {
        // A listener that accepts and never answers, as behind a firewall.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", silent.local_addr().unwrap());
        let service = Setup::new()
            .variable("REDIS_URL", &url)
            .set("event_broker.required", "true")
            .set("event_broker.pool.connect_timeout", "\"3s\"")
            .start()
            .await;
        let response = service.get("/health").send().await.unwrap();
        assert_eq!(response.status(), 503);
        let health: Value = response.json().await.unwrap();
        assert_eq!(status(&health), "starting");
        assert_eq!(service.get("/livez").send().await.unwrap().status(), 200);
        assert_eq!(service.get("/readyz").send().await.unwrap().status(), 503);
        eventually("it is decided", async || {
            (status(&service.json("/health").await) == "unhealthy").then_some(())
        })
        .await;
    }
}
