//! The Kubernetes manifests through start, outage and drain: a simulated kubelet probes the real
//! program.

mod kubelet;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use agentarea_api::config;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::kubelet::{Container, Kubelet};
use crate::support::{Database, Link, Passing, Service, Setup, eventually, free_port, signal};

const GUIDE: &str = include_str!("../../../deploy/kubernetes/guide.yaml");
const OURS: &str = include_str!("../../../deploy/kubernetes/base/api.yaml");
const WORKER: &str = include_str!("../../../deploy/kubernetes/base/worker.yaml");
const COMPOSE: &str = include_str!("../../../docker-compose.yml");
/// The manifest from the deployment guide.
const GUIDES_OWN: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: agentarea-api
spec:
  template:
    spec:
      containers:
      - name: api
        env:
        - name: ENVIRONMENT
          value: \"production\"
        # Health check configuration
        livenessProbe:
          httpGet:
            path: /health
            port: 8000
          initialDelaySeconds: 30
          periodSeconds: 10
        readinessProbe:
          httpGet:
            path: /health
            port: 8000
          initialDelaySeconds: 5
          periodSeconds: 5
";
const TEN_MINUTES: u32 = 600;

/// Clients that continue through the outage; each must get an answer that reports it.
async fn refused_clients(service: &Service) {
    loop {
        let (status, problem) = service.send("/v1/executions", &json!({"workflow": "echo"})).await;
        assert_eq!(status, 503, "{problem}");
    }
}

/// The service on a database of its own, behind a link.
async fn started(setup: Setup) -> (Service, Link, Database) {
    let database = Database::create().await;
    let link = Link::to(database.address()).await;
    let url = database.url_at(&link.address);
    let service = setup.variable("DATABASE_URL", &url).start().await;
    service.healthy().await;
    (service, link, database)
}

async fn ten_minutes_without_database_restart_nothing(outage: Passing) {
    let (service, link, database) = started(Setup::new()).await;
    let mut kubelet = Kubelet::of(GUIDE);
    kubelet.watch(&service, 60).await;

    link.set(outage);
    service.health("the outage shows", |health| health["status"] == "unhealthy").await;
    let sent = tokio::select! {
        sent = kubelet.watch(&service, TEN_MINUTES) => sent,
        () = refused_clients(&service) => unreachable!("they go on for ever"),
    };
    assert_eq!(sent, (60, 120), "every probe of ten minutes was sent");
    assert_eq!(service.get("/readyz").send().await.unwrap().status(), 503);

    link.set(Passing::Open);
    service.healthy().await;
    kubelet.watch(&service, 60).await;
    assert_eq!(service.get("/readyz").send().await.unwrap().status(), 200);
    let id = service.execute(&json!({"workflow": "echo"})).await;
    assert_eq!(service.result(&id).await["status"], "completed");
    for prober in [&kubelet.liveness, &kubelet.readiness] {
        assert_eq!((prober.reached, &*prober.complaints), (0, &[][..]), "{:?}", prober.probe);
    }
    drop(service);
    database.drop().await;
}

#[tokio::test]
async fn ten_minutes_of_a_database_that_refuses_restart_nothing() {
    ten_minutes_without_database_restart_nothing(Passing::Cut).await;
}

#[tokio::test]
async fn ten_minutes_of_a_database_that_never_answers_restart_nothing() {
    ten_minutes_without_database_restart_nothing(Passing::Stalled).await;
}

/// Our own manifest takes a replica without its database out of the load balancer, puts it back, takes
/// it out before it stops, and restarts it never.
#[tokio::test]
async fn our_manifest_follows_readiness_through_start_outage_and_drain_without_a_restart() {
    let (mut service, link, database) = started(Setup::new().set("server.drain_delay", "3s")).await;
    let mut kubelet = Kubelet::of(OURS);
    kubelet.watch(&service, 30).await;
    assert!(kubelet.startup.is_none(), "it has started");
    assert_eq!(kubelet.readiness.complaints, [""; 0]);

    link.set(Passing::Cut);
    service.health("the outage shows", |health| health["status"] == "unhealthy").await;
    kubelet.watch(&service, TEN_MINUTES).await;
    assert!(kubelet.readiness.reached > 0, "no traffic while the database is down");

    link.set(Passing::Open);
    service.healthy().await;
    let (reached, complaints) = (kubelet.readiness.reached, kubelet.readiness.complaints.len());
    kubelet.watch(&service, 30).await;
    assert_eq!(kubelet.readiness.complaints.len(), complaints, "traffic is back");

    signal(&service.child, "-TERM");
    while kubelet.readiness.reached == reached {
        kubelet.watch(&service, 1).await;
    }
    let told = &kubelet.readiness.complaints[complaints..];
    assert!(
        told.iter().all(|complaint| complaint.ends_with("503 Service Unavailable")),
        "{told:?}"
    );
    assert_eq!(kubelet.liveness.complaints, [""; 0], "nothing was restarted");
    assert_eq!(service.exit_code().await, Some(0));
    drop(service);
    database.drop().await;
}

#[tokio::test]
async fn our_manifest_waits_for_a_database_that_is_down_at_the_start() {
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("postgres://nobody:x@{address}/nothing");
    let service = Setup::new().variable("DATABASE_URL", &url).start().await;
    let mut kubelet = Kubelet::of(OURS);
    kubelet.watch(&service, TEN_MINUTES).await;
    assert!(kubelet.startup.is_none(), "waiting for a database is no reason to restart");
    assert!(kubelet.readiness.reached > 0, "and none to send traffic");
    assert_eq!(kubelet.liveness.complaints, [""; 0]);
}

/// A session that holds the migration lock, like a replica that is migrating.
async fn migrating_elsewhere(database: &Database) -> (tokio_postgres::Client, JoinSet<()>) {
    let (client, connection) =
        tokio_postgres::connect(&database.url, tokio_postgres::NoTls).await.unwrap();
    let mut driven = JoinSet::new();
    driven.spawn(async {
        let _ended = connection.await.is_ok();
    });
    client.batch_execute("SELECT pg_advisory_lock(4917230115)").await.unwrap();
    (client, driven)
}

/// A migration of ten minutes: the guide's manifest waits for it, and would not by its own probes.
#[tokio::test]
async fn the_guides_manifest_outlasts_a_migration_that_its_own_probes_would_not() {
    let database = Database::create().await;
    let (lock, _driven) = migrating_elsewhere(&database).await;
    let service = Setup::new().variable("DATABASE_URL", &database.url).start().await;
    service.health("it starts", |health| health["status"] == "starting").await;
    eventually("it waits for the lock", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (database.value(waiting).await == 1).then_some(())
    })
    .await;
    let (mut kubelet, mut guides_own) = (Kubelet::of(GUIDE), Kubelet::of(GUIDE));
    guides_own.startup = None;
    tokio::join!(kubelet.watch(&service, TEN_MINUTES), guides_own.watch(&service, TEN_MINUTES));
    assert!(guides_own.liveness.reached > 0, "its own probes restart it");
    let startup = kubelet.startup.as_ref().expect("it still starts");
    assert!(startup.sent > 0, "{startup:?}");
    assert_eq!(startup.reached, 0, "{startup:?}");
    assert_eq!(kubelet.liveness.sent, 0, "nobody asks before it has started");
    assert_eq!(service.json("/health").await["status"], "starting");

    drop(lock);
    service.healthy().await;
    kubelet.watch(&service, 60).await;
    assert!(kubelet.startup.is_none(), "it has started");
    assert!(kubelet.readiness.sent > 0);
    for prober in [&kubelet.liveness, &kubelet.readiness] {
        assert_eq!(prober.complaints, [""; 0], "{:?}", prober.probe);
    }
    drop(service);
    database.drop().await;
}

/// Shows the purpose of the default `[health.http_status]`, and that the simulated kubelet does
/// restart.
#[tokio::test]
async fn another_mapping_would_restart_the_fleet() {
    let setup = Setup::new().set("health.http_status.unhealthy", "503");
    let (service, link, database) = started(setup).await;
    let mut kubelet = Kubelet::of(GUIDE);
    kubelet.watch(&service, 30).await;
    assert!(kubelet.startup.is_none(), "it has started");
    link.set(Passing::Cut);
    service.health("the outage shows", |health| health["status"] == "unhealthy").await;
    kubelet.watch(&service, 30).await;
    assert_eq!(kubelet.liveness.reached, 1, "{:?}", kubelet.liveness.complaints);
    drop(service);
    database.drop().await;
}

#[test]
fn the_manifests_probe_the_port_that_is_the_default() {
    for manifest in [GUIDE, OURS] {
        let container = Container::of(manifest);
        for probe in [&container.liveness_probe, &container.readiness_probe] {
            assert_eq!(container.port(probe), config::Server::default().port);
        }
    }
}

/// Asserts that every key and item of `part` is in `whole`. Items with a name are matched by it.
fn assert_within(part: &Value, whole: &Value, path: &str) {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            for (key, value) in part {
                let found = whole.get(key).unwrap_or_else(|| panic!("{path}/{key} is missing"));
                assert_within(value, found, &format!("{path}/{key}"));
            }
        }
        (Value::Array(part), Value::Array(whole)) => {
            for item in part {
                let same = |other: &&Value| other["name"] == item["name"];
                let found = whole.iter().find(same);
                let found = found.unwrap_or_else(|| panic!("{path}: {item} is missing"));
                assert_within(item, found, path);
            }
        }
        _ => assert_eq!(part, whole, "{path}"),
    }
}

#[test]
fn the_guides_manifest_is_the_guides_own_and_more() {
    let read = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
    assert_within(&read(GUIDES_OWN), &read(GUIDE), "");
}

/// Neither Kubernetes nor Docker may kill the program within its own grace period.
#[test]
fn every_grace_is_longer_than_a_drain() {
    let server = config::Server::default();
    let drain = (server.drain_delay + server.shutdown_grace).as_secs();
    for (name, manifest) in [("api", OURS), ("worker", WORKER), ("guide", GUIDE)] {
        let manifest: Value = serde_saphyr::from_str(manifest).unwrap();
        let grace = &manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        assert!(grace.as_u64().unwrap() > drain, "{name}: {grace} s for {drain} s");
    }
    let compose: Value = serde_saphyr::from_str(COMPOSE).unwrap();
    for service in ["api1", "api2", "worker"] {
        let grace = compose["services"][service]["stop_grace_period"].as_str().unwrap();
        let grace: u64 = grace.trim_end_matches('s').parse().unwrap();
        assert!(grace > drain, "{service}: {grace} s for {drain} s");
    }
    let production = include_str!("../../../config/production.toml");
    assert!(!production.contains("[server]"), "the defaults are those of production");
}

/// The key that a script printed, once.
fn printed_key(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stderr.clone()).unwrap();
    let key = printed.lines().map(str::trim).find(|line| line.starts_with("aak_"));
    key.unwrap_or_else(|| panic!("no key in {printed}")).to_owned()
}

async fn opens_with(service: &Service, key: &str) {
    let asked = service.get("/v1/connections");
    assert_eq!(asked.send().await.unwrap().status(), 401);
    let asked = service.post("/v1/config/reload").bearer_auth(key);
    assert_eq!(asked.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_secret_has_all_that_the_manifests_refer_to_and_its_key_is_accepted() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kubernetes-secret");
    let url = "postgres://user:it's $5@db:5432/agentarea";
    let output = Command::new(&script)
        .envs([("REDIS_URL", "redis://redis:6379"), ("TEMPORAL_ADDRESS", "temporal:7233")])
        .env("DATABASE_URL", url)
        .output()
        .unwrap();
    let key = printed_key(&output);
    let secret: Value = serde_saphyr::from_slice(&output.stdout).unwrap();
    let secret = &secret["stringData"];
    assert_eq!(secret["database_url"], url);
    let production = include_str!("../../../deploy/kubernetes/overlays/production/production.yaml");
    let mut referred = 0;
    for manifest in [GUIDE, production] {
        for reference in manifest.split("key: ").skip(1) {
            let name = reference.split([' ', ',', '}']).next().unwrap();
            assert!(secret[name].is_string(), "{name} is not in the Secret");
            referred += 1;
        }
    }
    assert_eq!(referred, 8, "four of each");

    let keys = secret["auth_keys"].as_str().unwrap();
    let setup = Setup::new().set("auth.mode", "api_key").variable("AGENTAREA_AUTH__KEYS", keys);
    opens_with(&setup.start().await, &key).await;

    let refused = Command::new(&script).env_remove("REDIS_URL").output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("REDIS_URL"), "{refused:?}");
}

#[tokio::test]
async fn the_secrets_of_the_stack_need_no_image_and_their_key_is_accepted() {
    let setup = Setup::new().set("auth.mode", "api_key");
    fs::create_dir(setup.path().join("scripts")).unwrap();
    for script in ["compose-secrets", "new-key"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
        fs::copy(source, setup.path().join("scripts").join(script)).unwrap();
    }
    let make = || Command::new(setup.path().join("scripts/compose-secrets")).output().unwrap();
    let key = printed_key(&make());
    let read = |name: &str| fs::read_to_string(setup.path().join(name)).unwrap();
    let files = [".env", "secrets/postgres_password", "secrets/grafana_password"].map(read);
    assert!(files.iter().all(|text| text.len() >= 24), "{files:?}");
    // The service reads .env in the same way as Compose.
    assert!(make().stderr.is_empty(), "what exists stays as it is");
    assert_eq!(read(".env"), files[0]);
    opens_with(&setup.start().await, &key).await;
}

#[test]
fn the_guides_manifest_is_read_with_the_defaults_of_kubernetes() {
    let Kubelet { liveness, readiness, .. } = Kubelet::of(GUIDE);
    for probe in [&liveness.probe, &readiness.probe] {
        assert_eq!((probe.timeout_seconds, probe.failure_threshold), (1, 3));
    }
    assert_eq!((liveness.probe.initial_delay_seconds, liveness.probe.period_seconds), (30, 10));
    assert_eq!((readiness.probe.initial_delay_seconds, readiness.probe.period_seconds), (5, 5));
}
