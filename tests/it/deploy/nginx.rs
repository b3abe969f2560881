//! `deploy/nginx` on the real nginx, in front of two real replicas.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use reqwest::{Certificate, StatusCode, Version, redirect};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

use crate::support::{
    Database, Redis, Service, Setup, certificate, eventually, free_port, http_client, listens,
    signal,
};

const FILES: [&str; 6] = [
    "plain.conf",
    "nginx.conf",
    "agentarea/http.conf",
    "agentarea/locations.conf",
    "agentarea/proxy.conf",
    "agentarea/upstream.conf",
];

/// nginx with the project's own configuration; only addresses and paths are changed.
struct Nginx {
    folder: TempDir,
    child: Child,
    /// The port of `plain.conf`, or of the redirect in `nginx.conf`.
    base: String,
    /// The TLS port of `nginx.conf`.
    secure: String,
}

impl Nginx {
    async fn before(replicas: &[u16; 2]) -> Self {
        Self::with("plain.conf", replicas).await
    }

    async fn with(configuration: &str, replicas: &[u16; 2]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().display().to_string();
        let (port, secure) = (free_port(), free_port());
        let (certificate, key) = (certificate("server.pem"), certificate("server.key"));
        fs::create_dir(folder.path().join("agentarea")).unwrap();
        for file in FILES {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(file);
            let text = fs::read_to_string(source)
                .unwrap()
                // Several workers on every machine, because workers that disagree about live
                // replicas would fail requests.
                .replace("worker_processes auto", "worker_processes 8")
                .replace("api1:8000", &format!("127.0.0.1:{}", replicas[0]))
                .replace("api2:8000", &format!("127.0.0.1:{}", replicas[1]))
                .replace("listen 8080", &format!("listen 127.0.0.1:{port}"))
                .replace("listen 80;", &format!("listen 127.0.0.1:{port};"))
                .replace("listen 443", &format!("listen 127.0.0.1:{secure}"))
                .replace("tls/tls.crt", &certificate.to_string_lossy())
                .replace("tls/tls.key", &key.to_string_lossy())
                .replace("/tmp/nginx", &format!("{own}/nginx"))
                .replace("/dev/stdout", &format!("{own}/access.log"));
            fs::write(folder.path().join(file), text).unwrap();
        }
        let child = Command::new("nginx")
            .args(["-g", "daemon off;", "-p", &own, "-c"])
            .arg(folder.path().join(configuration))
            .stderr(fs::File::create(folder.path().join("error.log")).unwrap())
            .spawn()
            .expect("nginx is missing: apt-get install -y --no-install-recommends nginx-light");
        let base = format!("http://127.0.0.1:{port}");
        let secure = format!("https://localhost:{secure}");
        let nginx = Self { folder, child, base, secure };
        listens("nginx", port).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it only on a signal.
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
            .variable("DATABASE_URL", &self.database.url)
            .set("server.drain_delay", "\"1s\"")
            .start()
            .await;
        service.healthy().await;
        service
    }
}

/// Clients that run until `end`: each keeps its connection, and every request must succeed.
/// Returns the number of requests and the ids of the accepted events.
async fn client(base: String, mut end: watch::Receiver<bool>) -> (usize, Vec<String>) {
    let http = http_client().pool_max_idle_per_host(1).build().unwrap();
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
async fn events_pass_at_once_and_requests_without_a_replica_get_a_problem() {
    let fleet = Fleet::new().await;
    let nginx = Nginx::before(&fleet.ports).await;
    let http = http_client().build().unwrap();
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

#[tokio::test]
async fn too_large_a_body_is_refused_by_the_service_and_beyond_its_reach_by_nginx() {
    let fleet = Fleet::new().await;
    let service = fleet.replica(0).await;
    service.healthy().await;
    let nginx = Nginx::before(&fleet.ports).await;
    let post = async |mebibytes: usize| {
        let body = json!({"type": "t", "data": "x".repeat(mebibytes << 20)});
        let http = http_client().build().unwrap();
        http.post(format!("{}/v1/events", nginx.base)).json(&body).send().await.unwrap()
    };
    for _ in 0..10 {
        let answer = post(2).await;
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
    }
    let answer = post(9).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let refused =
        r#"agentarea_http_requests_total{method="POST",route="/v1/events",status="413"} 10"#;
    assert!(metrics.contains(refused), "the last did not come through: {metrics}");
    drop((service, nginx));
    fleet.database.drop().await;
}

/// Established connections of this machine to a port of the loopback.
fn connections_to(port: u16) -> usize {
    let peer = format!("0100007F:{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2) == Some(&&*peer) && fields.get(3) == Some(&"01")
    };
    table.lines().filter(established).count()
}

#[tokio::test]
async fn nginx_keeps_its_connections_until_the_replica_drains() {
    let fleet = Fleet::new().await;
    let mut service = Setup::new()
        .variable("AGENTAREA_SERVER__PORT", &fleet.ports[0].to_string())
        .set("server.drain_delay", "\"10s\"")
        .start()
        .await;
    service.healthy().await;
    let nginx = Nginx::before(&fleet.ports).await;
    let http = http_client().build().unwrap();
    let livez = async || {
        let answer = http.get(format!("{}/livez", nginx.base)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    // This client keeps its connection, so that one worker of nginx serves it.
    service.http = http_client().pool_max_idle_per_host(0).build().unwrap();
    livez().await;
    livez().await;
    assert_eq!(connections_to(fleet.ports[0]), 1, "one is kept and used again");

    signal(&service.child, "-TERM");
    service.health("it drains", |health| health["status"] == "draining").await;
    livez().await;
    let answered = Instant::now();
    eventually("nginx keeps none to a replica that drains", async || {
        (connections_to(fleet.ports[0]) == 0).then_some(())
    })
    .await;
    // Its own keepalive_timeout is five.
    assert!(answered.elapsed() < Duration::from_secs(4), "it closed for another reason");
    livez().await;
    assert_eq!(service.exit_code().await, Some(0));
    drop((service, nginx));
    fleet.database.drop().await;
}

#[tokio::test]
async fn over_tls_everything_is_answered_in_http_2_and_asks_for_tls_for_ever() {
    let fleet = Fleet::new().await;
    let nginx = Nginx::with("nginx.conf", &fleet.ports).await;
    let authority = fs::read(certificate("ca.pem")).unwrap();
    let http = http_client()
        .tls_built_in_root_certs(false)
        .add_root_certificate(Certificate::from_pem(&authority).unwrap())
        .redirect(redirect::Policy::none())
        .build()
        .unwrap();
    let get = async |path: &str| {
        let answer = http.get(format!("{}{path}", nginx.secure)).send().await.unwrap();
        assert_eq!(answer.version(), Version::HTTP_2);
        let lasting: Vec<_> =
            answer.headers().get_all("strict-transport-security").iter().collect();
        assert_eq!(lasting, ["max-age=31536000"], "{path}");
        answer
    };
    let answer = get("/health").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["retry-after"]),
        (503, &"5".parse().unwrap())
    );

    let service = fleet.replica(0).await;
    eventually("it is found", async || (get("/livez").await.status() == 200).then_some(())).await;
    let answer = http.get(format!("{}/health?x=1", nginx.base)).send().await.unwrap();
    assert_eq!(answer.status(), 301);
    assert_eq!(answer.headers()["location"], "https://127.0.0.1/health?x=1");
    drop((service, nginx));
    fleet.database.drop().await;
}
