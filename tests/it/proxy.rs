//! `deploy/nginx` on the real nginx, in front of two real replicas.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

use crate::support::{Database, Redis, Service, Setup, eventually, free_port, signal};

const FILES: [&str; 5] = [
    "plain.conf",
    "agentarea/http.conf",
    "agentarea/locations.conf",
    "agentarea/proxy.conf",
    "agentarea/upstream.conf",
];

/// nginx with the project's own configuration; only addresses and paths are changed.
struct Nginx {
    folder: TempDir,
    child: Child,
    base: String,
}

impl Nginx {
    async fn before(replicas: &[u16; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().display().to_string();
        let port = free_port();
        fs::create_dir(folder.path().join("agentarea")).unwrap();
        for file in FILES {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(file);
            let text = fs::read_to_string(source)
                .unwrap()
                // Wherever the tests run: workers that do not agree on who is up fail requests.
                .replace("worker_processes auto", "worker_processes 8")
                .replace("api1:8000", &format!("127.0.0.1:{}", replicas[0]))
                .replace("api2:8000", &format!("127.0.0.1:{}", replicas[1]))
                .replace("listen 8080", &format!("listen 127.0.0.1:{port}"))
                .replace("/tmp/nginx", &format!("{own}/nginx"))
                .replace("/dev/stdout", &format!("{own}/access.log"));
            fs::write(folder.path().join(file), text).unwrap();
        }
        let child = Command::new("nginx")
            .args(["-g", "daemon off;", "-p", &own, "-c"])
            .arg(folder.path().join("plain.conf"))
            .stderr(fs::File::create(folder.path().join("error.log")).unwrap())
            .spawn()
            .expect("nginx is missing: apt-get install -y --no-install-recommends nginx-light");
        let base = format!("http://127.0.0.1:{port}");
        let nginx = Self { folder, child, base };
        eventually("nginx listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it only if it is asked.
        signal(&self.child, "-TERM");
        let _reaped = self.child.wait().is_ok();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default();
            eprintln!(
                "--- errors of nginx\n{}",
                log.lines().take(20).collect::<Vec<_>>().join("\n")
            );
        }
    }
}

/// Two replicas on one database and broker, behind nginx.
struct Fleet {
    ports: [u16; 2],
    redis: Redis,
    database: Database,
}

impl Fleet {
    async fn new() -> Self {
        let (redis, database) = (Redis::start().await, Database::create().await);
        Self { ports: [free_port(), free_port()], redis, database }
    }

    async fn replica(&self, number: usize) -> Service {
        let service = Setup::new()
            .variable("AGENTAREA_SERVER__PORT", &self.ports[number].to_string())
            .variable("REDIS_URL", &self.redis.url())
            .variable("DATABASE_URL", &self.database.url())
            .set("server.drain_delay", "\"1s\"")
            .start()
            .await;
        service.healthy().await;
        service
    }
}

/// What clients do until they are told to end: each keeps its connection, and every request must
/// succeed. Gives how many there were, and the ids of the events that were accepted.
async fn client(base: String, mut end: watch::Receiver<bool>) -> (usize, Vec<String>) {
    let http = Client::builder().pool_max_idle_per_host(1).build().unwrap();
    let (mut gets, mut accepted) = (0, Vec::new());
    while !*end.borrow_and_update() {
        let answer = http.get(format!("{base}/v1/executions?limit=1")).send().await.unwrap();
        let (status, body) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "GET number {gets}: {body}");
        gets += 1;
        let key = uuid::Uuid::now_v7().to_string();
        let post = http.post(format!("{base}/v1/events")).header("Idempotency-Key", key);
        let answer = post.json(&json!({"type": "t", "data": gets})).send().await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, StatusCode::ACCEPTED, "POST number {}: {body}", accepted.len());
        accepted.push(body["id"].as_str().unwrap().to_owned());
    }
    (gets, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_kill_9_nor_a_rolling_restart_fails_a_get_or_a_keyed_post() {
    let fleet = Fleet::new().await;
    let (one, two) = tokio::join!(fleet.replica(0), fleet.replica(1));
    let nginx = Nginx::before(&fleet.ports).await;
    let (end, ended) = watch::channel(false);
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn(client(nginx.base.clone(), ended.clone()));
    }

    let mut replicas = [one, two];
    for round in 0..2 {
        for number in 0..2 {
            let [one, two] = replicas;
            let (mut leaving, staying) = if number == 0 { (one, two) } else { (two, one) };
            if round == 0 {
                drop(leaving.kill());
            } else {
                signal(&leaving.child, "-TERM");
                assert_eq!(leaving.exit_code().await, Some(0));
            }
            let new = fleet.replica(number).await;
            replicas = if number == 0 { [new, staying] } else { [staying, new] };
            let accepted = r#"route="/v1/events",status="202""#;
            eventually("nginx uses it again", async || {
                let metrics = replicas[number].get("/metrics").send().await.unwrap();
                metrics.text().await.unwrap().contains(accepted).then_some(())
            })
            .await;
        }
    }

    end.send(true).unwrap();
    let (mut gets, mut accepted) = (0, Vec::new());
    while let Some(client) = clients.join_next().await {
        let (more, ids) = client.expect("no request fails");
        gets += more;
        accepted.extend(ids);
    }
    assert!(gets > 100, "{gets}");
    let stored = fleet.database.value("SELECT count(*) FROM outbox").await;
    assert_eq!(
        stored,
        i64::try_from(accepted.len()).unwrap(),
        "each accepted event is stored once"
    );
    drop((replicas, nginx));
    fleet.database.drop().await;
}

#[tokio::test]
async fn events_pass_at_once_and_what_nobody_can_answer_is_a_problem() {
    let fleet = Fleet::new().await;
    let nginx = Nginx::before(&fleet.ports).await;
    let http = Client::new();
    let answer = http.get(format!("{}/health", nginx.base)).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert!(answer.headers().contains_key("retry-after"));

    let service = fleet.replica(0).await;
    let get = async |path: &str| {
        let request = http.get(format!("{}{path}", nginx.base)).header("x-request-id", "mine");
        request.send().await.unwrap()
    };
    let mut stream = eventually("the stream opens", async || {
        let answer = get("/v1/events/stream").await;
        (answer.status() == 200).then_some(answer)
    })
    .await;
    assert_eq!(stream.headers()["x-request-id"], "mine");
    service.send("/v1/events", &json!({"type": "passes.at.once"})).await;
    let mut seen = String::new();
    while !seen.contains("passes.at.once") {
        let chunk = tokio::time::timeout(Duration::from_secs(30), stream.chunk()).await;
        let chunk = chunk.expect("it is not held back").unwrap().expect("the stream goes on");
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert_eq!(get("/metrics").await.status(), 404);
    drop((service, nginx));
    fleet.database.drop().await;
}
