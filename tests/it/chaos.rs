//! Whatever may happen to processes, servers and the links between, in an order that a seed gives,
//! under load. `CHAOS_FAULTS` and `CHAOS_SEED` make it longer, or the same again.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Client;
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    ledger::{Ledger, is_retryable},
    support::{Database, Link, Passing, Redis, Service, Setup, eventually, server, signal},
};

/// Faults of the short form, each kind once.
const FAULTS: usize = Fault::ALL.len();
const REPLICAS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillReplica,
    PauseReplica,
    KillRedis,
    FreezeRedis,
    CutPostgres,
    StallPostgres,
    EndPostgresSessions,
    CutTemporal,
    StallTemporal,
    KillWorker,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::KillReplica,
        Self::PauseReplica,
        Self::KillRedis,
        Self::FreezeRedis,
        Self::CutPostgres,
        Self::StallPostgres,
        Self::EndPostgresSessions,
        Self::CutTemporal,
        Self::StallTemporal,
        Self::KillWorker,
    ];

    /// Each kind in turn, in another order each time.
    fn schedule(seed: u64, count: usize) -> Vec<(Self, usize, Duration)> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut schedule = Vec::new();
        while schedule.len() < count {
            let kinds: Vec<Self> =
                Self::ALL.choose_multiple(&mut random, FAULTS).copied().collect();
            for fault in kinds {
                let replica = random.random_range(0..REPLICAS);
                let lasts = Duration::from_millis(random.random_range(200..3000));
                schedule.push((fault, replica, lasts));
            }
        }
        schedule.truncate(count);
        schedule
    }
}

struct Fleet {
    redis: Redis,
    database: Database,
    postgres: Link,
    temporal: Link,
    /// Of all workflow ids of this run.
    prefix: String,
    worker: Child,
    replicas: Vec<Service>,
}

impl Fleet {
    async fn start() -> Self {
        let redis = Redis::start().await;
        let database = Database::create().await;
        let postgres = Link::to(database.address()).await;
        let temporal = Link::to(&server("TEST_TEMPORAL_ADDRESS")).await;
        let prefix = format!("chaos-{}/", uuid::Uuid::now_v7());
        let worker = setup(&redis, &database.url(), &server("TEST_TEMPORAL_ADDRESS"), &prefix);
        let (worker, _log) = worker.argument("worker").spawn();
        let url = database.url().replace(database.address(), &postgres.address);
        let replica = || setup(&redis, &url, &temporal.address, &prefix).start();
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            replicas.push(replica().await);
        }
        for replica in &replicas {
            replica.healthy().await;
        }
        Self { redis, database, postgres, temporal, prefix, worker, replicas }
    }

    async fn suffer(&mut self, fault: Fault, replica: usize, lasts: Duration, ledger: &Ledger) {
        match fault {
            Fault::KillReplica => {
                let killed = self.replicas.remove(replica).kill();
                ledger.send_to(&self.running(None));
                self.replicas.push(killed.start().await);
            }
            Fault::PauseReplica => {
                ledger.send_to(&self.running(Some(replica)));
                signal(&self.replicas[replica].child, "-STOP");
                sleep(lasts).await;
                signal(&self.replicas[replica].child, "-CONT");
            }
            Fault::KillRedis => {
                self.redis.down();
                sleep(lasts).await;
                self.redis.up().await;
            }
            Fault::FreezeRedis => {
                self.redis.freeze(true);
                sleep(lasts).await;
                self.redis.freeze(false);
            }
            Fault::CutPostgres => happen(&self.postgres, Passing::Cut, lasts).await,
            Fault::StallPostgres => happen(&self.postgres, Passing::Stalled, lasts).await,
            Fault::CutTemporal => happen(&self.temporal, Passing::Cut, lasts).await,
            Fault::StallTemporal => happen(&self.temporal, Passing::Stalled, lasts).await,
            Fault::EndPostgresSessions => {
                let name = self.database.name();
                let end = format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                );
                self.database.execute(&end).await;
            }
            Fault::KillWorker => {
                end(&mut self.worker);
                sleep(lasts).await;
                let temporal = server("TEST_TEMPORAL_ADDRESS");
                let worker = setup(&self.redis, &self.database.url(), &temporal, &self.prefix);
                self.worker = worker.argument("worker").spawn().0;
            }
        }
        ledger.send_to(&self.running(None));
    }

    fn running(&self, but: Option<usize>) -> Vec<&Service> {
        let running = self.replicas.iter().enumerate().filter(|(n, _)| Some(*n) != but);
        running.map(|(_, service)| service).collect()
    }

    /// How many workflows Temporal has started for this run.
    fn started(&self) -> Option<usize> {
        let output = Command::new("temporal")
            .args(["workflow", "count", "--address", &server("TEST_TEMPORAL_ADDRESS"), "--query"])
            .arg(format!("WorkflowId STARTS_WITH '{}'", self.prefix))
            .output()
            .expect("temporal is missing: scripts/install puts it into ~/go/bin");
        let said = String::from_utf8(output.stdout).unwrap();
        said.trim().strip_prefix("Total: ")?.parse().ok()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        end(&mut self.worker);
    }
}

fn end(child: &mut Child) {
    let _already_dead = child.kill().is_err();
    let _reaped = child.wait().is_ok();
}

async fn happen(link: &Link, what: Passing, lasts: Duration) {
    link.set(what);
    sleep(lasts).await;
    link.set(Passing::Open);
}

fn setup(redis: &Redis, database: &str, temporal: &str, prefix: &str) -> Setup {
    Setup::new()
        .variable("REDIS_URL", &redis.url())
        .variable("DATABASE_URL", database)
        .variable("TEMPORAL_ADDRESS", temporal)
        .variable("TEMPORAL_TASK_QUEUE", prefix)
        .set("execution_service.temporal.workflow_id_prefix", &format!("\"{prefix}\""))
        .set("execution_service.probe.timeout", "\"400ms\"")
        .set("executions.follow_interval", "\"200ms\"")
        .set("executions.lease", "\"3s\"")
        .set("executions.confirm_within", "\"2s\"")
        .set("outbox.lease", "\"2s\"")
}

/// Starts executions, each until it is accepted, and writes them down.
async fn start_executions(
    ledger: Ledger,
    client: usize,
    accepted: Arc<Mutex<BTreeMap<String, usize>>>,
) {
    let http = Client::builder().timeout(Duration::from_secs(5)).build().unwrap();
    let mut turn = client;
    for n in 0.. {
        let id = format!("c{client}-{n}");
        loop {
            if ledger.stop.is_cancelled() {
                return;
            }
            let base = ledger.base(turn);
            turn += 1;
            let sent = http
                .post(format!("{base}/v1/executions"))
                .header("Idempotency-Key", &id)
                .json(&json!({"workflow": "echo", "id": id, "input": n}))
                .send()
                .await;
            match sent {
                Ok(response) if response.status() == 202 => break,
                Ok(response) => assert!(is_retryable(&response), "{response:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        accepted.lock().insert(id, n);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's own, no configuration")]
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let value = env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_accepted_is_lost_or_started_twice_whatever_happens() {
    let seed = number("CHAOS_SEED").unwrap_or_else(rand::random);
    let schedule = Fault::schedule(seed, number("CHAOS_FAULTS").unwrap_or(FAULTS));
    println!("CHAOS_SEED={seed}");
    let begin = Instant::now();
    let mut fleet = Fleet::start().await;
    let ledger = Ledger::new(&fleet.running(None));
    let accepted = Arc::new(Mutex::new(BTreeMap::new()));
    let mut starting = JoinSet::new();
    for client in 0..4 {
        starting.spawn(start_executions(ledger.clone(), client, Arc::clone(&accepted)));
    }
    let mut happened: BTreeMap<Fault, usize> = BTreeMap::new();
    ledger
        .under_load(async {
            for (fault, replica, lasts) in schedule {
                println!("{:>7.1} s {fault:?} {replica} {lasts:?}", begin.elapsed().as_secs_f64());
                fleet.suffer(fault, replica, lasts, &ledger).await;
                // In the end everything works again.
                ledger.more(50).await;
                *happened.entry(fault).or_default() += 1;
            }
        })
        .await;
    while let Some(client) = starting.join_next().await {
        client.expect("every answer was 202, 503 or 504");
    }

    let executions = accepted.lock().clone();
    let service = &fleet.replicas[0];
    service.healthy().await;
    for (id, input) in &executions {
        let ended = service.result(id).await;
        assert_eq!((&ended["status"], &ended["result"]), (&json!("completed"), &json!(input)));
    }
    // The last request of each client may have been accepted unheard.
    let most = executions.len() + 4;
    let started = eventually("Temporal counts what it has started", async || {
        fleet.started().filter(|started| *started >= executions.len())
    })
    .await;
    assert!(started <= most, "{started} were started, {most} were accepted at most");
    let repeats = ledger.check(service).await;
    for destination in ["event_broker", "execution_service"] {
        let letters = service.json(&format!("/v1/dead-letters?destination={destination}")).await;
        assert_eq!(letters["items"], json!([]), "dead letters without cause");
    }
    let mut table = String::new();
    for (fault, times) in happened {
        write!(table, " {fault:?} {times},").unwrap();
    }
    println!(
        "{:.0} s:{table} {} events accepted, {repeats} delivered again, {} executions accepted, \
         {started} started; 0 lost, 0 started twice, 0 dead letters, order kept",
        begin.elapsed().as_secs_f64(),
        ledger.total(),
        executions.len(),
    );
    fleet.replicas.clear();
    let drop_it = format!("DROP DATABASE {} WITH (FORCE)", fleet.database.name());
    fleet.database.execute(&drop_it).await;
}
