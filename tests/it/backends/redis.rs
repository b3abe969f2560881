//! The event broker on a real Redis, through the program.

use reqwest::Client;
use serde_json::json;

use crate::support::{Redis, Setup, answer, http_client};

#[tokio::test]
async fn ten_thousand_simultaneous_first_requests_build_one_connection() {
    let redis = Redis::start().await;
    let service = Setup::new()
        .variable("REDIS_URL", &redis.url())
        .set("event_broker.startup", "\"lazy\"")
        // During ten thousand requests, two cores cannot answer a fast probe.
        .set("event_broker.probe.interval", "\"10s\"")
        .set("event_broker.probe.timeout", "\"10s\"")
        .set("event_broker.timeout", "{ attempt = \"100s\", total = \"100s\" }")
        .set("event_broker.circuit_breaker.half_open_timeout", "\"100s\"")
        .set("server.request_timeout", "\"110s\"")
        .start()
        .await;
    service.health("the service is healthy", |health| health["status"] == "healthy").await;
    // Uses as many HTTP/2 streams as a server admits, to need few sockets.
    let clients = (0..50).map(|_| http_client().http2_prior_knowledge().build().unwrap());
    let clients: Vec<Client> = clients.collect();
    let url = format!("{}/v1/events?delivery=direct", service.base);
    let requests = (0..10_000)
        .map(|n: usize| answer(clients[n % clients.len()].post(&url).json(&json!({"type": "x"}))));
    let answers = futures_util::future::join_all(requests).await;
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!(refused.is_empty(), "{} of them: {:?}", refused.len(), refused[0]);
    let health = service.json("/health").await;
    let broker = &health["connections"]["details"]["event_broker"];
    assert_eq!(broker["reuse"]["builds"], 1, "{broker}");
    assert!(broker["reuse"]["uses"].as_u64().unwrap() >= 10_000, "{broker}");
    assert_eq!(health["connections"]["connection_reuse"], true);
    assert_eq!(health["connections"]["singleton_pattern"], true);
}

#[tokio::test]
async fn followers_resume_over_a_restart_of_the_service() {
    let redis = Redis::start().await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    service.send("/v1/events", &json!({"type": "t", "data": 0})).await;
    let seen = events.next().await;
    service.send("/v1/events", &json!({"type": "t", "data": 1})).await;
    drop(events);
    let service = service.kill().start().await;
    service.healthy().await;
    let mut resumed = service.follow("", seen.id.as_deref()).await;
    service.send("/v1/events", &json!({"type": "t", "data": 2})).await;
    // If the kill came between the broker's answer and the update of the outbox, events are
    // repeated.
    let mut newest = 0;
    while newest < 2 {
        let n = resumed.next().await.data["data"].as_u64().unwrap();
        assert!(n <= newest + 1, "{n} came after {newest}");
        newest = newest.max(n);
    }
}

#[tokio::test]
async fn followers_stay_through_a_restart_of_redis() {
    let mut redis = Redis::start().await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    service.send("/v1/events", &json!({"type": "t", "data": 0})).await;
    assert_eq!(events.next().await.data["data"], 0);
    redis.down();
    service.health("the outage shows", |health| health["status"] == "degraded").await;
    redis.up().await;
    service.healthy().await;
    let (status, _) = service.send("/v1/events", &json!({"type": "t", "data": 1})).await;
    assert_eq!(status, 202);
    assert_eq!(events.next().await.data["data"], 1);
}

#[tokio::test]
async fn many_followers_share_one_upstream() {
    let redis = Redis::start().await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let mut followers = Vec::new();
    for _ in 0..50 {
        followers.push(service.follow("", None).await);
    }
    let mut published = Vec::new();
    for n in 0..20 {
        let (_, answer) = service.send("/v1/events", &json!({"type": "t", "data": n})).await;
        published.push(answer["id"].as_str().unwrap().to_owned());
    }
    for follower in &mut followers {
        assert_eq!(follower.ids(20).await, published);
    }
    let health = service.json("/health").await;
    let pool = &health["connections"]["details"]["event_broker"]["pool"];
    assert!(pool["in_use"].as_u64().unwrap() <= 1, "one blocking read for all: {pool}");
}
