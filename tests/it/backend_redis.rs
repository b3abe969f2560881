//! The event broker on a real Redis, through the program.

use serde_json::json;

use crate::support::{Redis, Setup, answer};

#[tokio::test]
async fn two_thousand_simultaneous_first_requests_build_one_connection() {
    let redis = Redis::start().await;
    let service = Setup::new()
        .variable("REDIS_URL", &redis.url())
        .set("event_broker.startup", "\"lazy\"")
        .start()
        .await;
    service.health("the service is healthy", |health| health["status"] == "healthy").await;
    let requests = (0..2000)
        .map(|_| answer(service.post("/v1/events?delivery=direct").json(&json!({"type": "x"}))));
    let answers = futures_util::future::join_all(requests).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{:?}", answers.last());
    let health = service.json("/health").await;
    let broker = &health["connections"]["details"]["event_broker"];
    assert_eq!(broker["reuse"]["builds"], 1, "{broker}");
    assert!(broker["reuse"]["uses"].as_u64().unwrap() >= 2000, "{broker}");
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
    let first = resumed.next().await;
    assert_eq!(first.data["data"], 1);
    service.send("/v1/events", &json!({"type": "t", "data": 2})).await;
    let mut next = resumed.next().await;
    // The kill may have come between the broker's answer and its mark: then the event comes again.
    if next.data["id"] == first.data["id"] {
        next = resumed.next().await;
    }
    assert_eq!(next.data["data"], 2);
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
