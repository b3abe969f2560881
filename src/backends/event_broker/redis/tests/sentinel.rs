//! `mode = "sentinel"`: a primary, a replica, and a sentinel that watches them.

use std::fs;

use super::*;

const MASTER: &str = "events-primary";

struct Watched {
    primary: Server,
    replica: Server,
    sentinel: Server,
}

impl Watched {
    async fn start(settings: &str) -> Self {
        let primary = Server::start().await;
        let replica = replica_of(primary.port, free_port()).await;
        let dir = tempfile::tempdir().unwrap();
        let file = format!(
            "sentinel monitor {MASTER} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {MASTER} 500\n\
             sentinel failover-timeout {MASTER} 3000\n{settings}\n",
            primary.port
        );
        fs::write(dir.path().join("sentinel.conf"), file).unwrap();
        let sentinel = Server::start_in(dir, free_port(), &["sentinel.conf", "--sentinel"]).await;
        Self { primary, replica, sentinel }
    }

    /// Returns a configuration that names the sentinel after one that is down.
    fn section(&self) -> Value {
        json!({
            "url": format!("redis://127.0.0.1:{}", free_port()),
            "nodes": [format!("127.0.0.1:{}", self.sentinel.port)],
            "mode": "sentinel",
            "master_name": MASTER,
        })
    }

    /// Waits until the sentinel knows that the replica can take over.
    async fn settled(&self) {
        let question = format!("SENTINEL REPLICAS {MASTER}");
        until("the sentinel knows the replica", async || {
            let replicas = ask(&self.sentinel, &question).await;
            replicas.contains(&format!("port {}", self.replica.port))
                && replicas.contains("master-link-status ok")
        })
        .await;
    }
}

async fn replica_of(primary: u16, port: u16) -> Server {
    let of = format!("127.0.0.1 {primary}");
    Server::start_on(port, &["--replicaof", &of, "--repl-diskless-sync-delay", "0"]).await
}

#[tokio::test]
async fn the_contract_holds_with_a_sentinel() {
    let watched = Watched::start("").await;
    contract::suite(build(watched.section()).await.unwrap()).await;
}

#[tokio::test]
async fn what_is_wrong_with_sentinels_is_told() {
    let watched = Watched::start("requirepass s3cret").await;
    let section = |more: Value| {
        let mut section = watched.section();
        section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        section
    };
    let login = failure(section(json!({}))).await;
    assert_eq!(login.kind(), ErrorKind::Unauthenticated, "{login}");
    let password = json!({"sentinel_password": "s3cret", "master_name": "other"});
    let unknown = failure(section(password)).await;
    assert_eq!(unknown.kind(), ErrorKind::Missing, "{unknown}");
    assert!(unknown.message().contains("other"), "{unknown}");
    let none = failure(json!({"url": watched.section()["url"], "mode": "sentinel"})).await;
    assert_eq!(none.kind(), ErrorKind::Refused, "{none}");
    build(section(json!({"sentinel_password": "s3cret"}))).await.unwrap();
}

#[tokio::test]
async fn a_failover_is_followed() {
    let watched = Watched::start("").await;
    let broker = build(watched.section()).await.unwrap();
    watched.settled().await;
    broker.publish(&[&event(1)]).await.unwrap();
    let written = broker.range().await.unwrap().newest;
    replicated(&watched.replica, 1).await;
    let Watched { primary, replica, sentinel } = watched;
    drop(primary);

    goes_on_at(&replica, &*broker, written).await;

    // A broker that has found the server needs no sentinel.
    drop(sentinel);
    published_again(&*broker).await;
}

#[tokio::test]
async fn a_primary_that_steps_down_costs_no_accepted_event() {
    let watched = Watched::start("").await;
    let broker = build(watched.section()).await.unwrap();
    watched.settled().await;
    broker.publish(&[&event(0)]).await.unwrap();
    replicated(&watched.replica, 1).await;
    run(&watched.sentinel.url(), &format!("SENTINEL FAILOVER {MASTER}")).await;
    let mut published = 1;
    until("the replica is the primary and has the events", async || {
        match broker.publish(&[&event(published)]).await {
            Ok(_) => published += 1,
            // No call is refused permanently: a caller that repeats it succeeds.
            Err(error) => assert_ne!(error.retry(), RetryClass::Never, "{error}"),
        }
        let role = ask(&watched.replica, "ROLE").await;
        role.starts_with("master") && broker.publish(&[&event(published)]).await.is_ok()
    })
    .await;
    assert!(entries(&watched.replica).await > 0);
    assert_eq!(broker.wait(Position::START, 1, Duration::from_secs(9)).await.unwrap().len(), 1);
}

async fn replicated(replica: &Server, events: usize) {
    until("the replica has the events", async || entries(replica).await == events).await;
}
