//! Injects faults into processes, servers and the links between them under load, in an order set by
//! a seed. `CHAOS_FAULTS` makes the run longer, `CHAOS_SEED` repeats one. After a failure the
//! evidence is kept.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    fs,
    panic::{AssertUnwindSafe, resume_unwind},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use reqwest::Client;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::awkward::{unreadable_event, unreadable_execution};
use crate::support::{
    DEADLINE, Database, Link, Passing, Postgres, Redis, Service, Setup, Temporal, eventually,
    faketime::Clock, http_client, ledger::Ledger, rtt, signal,
};

/// Faults of the short form, each kind once.
const FAULTS: usize = Fault::ALL.len();

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillReplica,
    PauseReplica,
    JumpClocks,
    KillRedis,
    FreezeRedis,
    EmptyRedis,
    CrashPostgres,
    EndPostgresSessions,
    StopTemporal,
    KillWorker,
    /// Rows that nobody can read.
    SpoilRows,
    /// A replica dies while a server does not answer it: between claim and start, between start and
    /// store, or in the middle of a batch.
    KillBetween(Peer),
    /// A fault of the link from all replicas to a server.
    Link(Peer, Passing),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Redis,
    Postgres,
    Temporal,
}

impl Fault {
    const ALL: [Self; 23] = [
        Self::KillReplica,
        Self::PauseReplica,
        Self::JumpClocks,
        Self::KillRedis,
        Self::FreezeRedis,
        Self::EmptyRedis,
        Self::CrashPostgres,
        Self::EndPostgresSessions,
        Self::StopTemporal,
        Self::KillWorker,
        Self::SpoilRows,
        Self::KillBetween(Peer::Redis),
        Self::KillBetween(Peer::Postgres),
        Self::KillBetween(Peer::Temporal),
        Self::Link(Peer::Redis, Passing::Cut),
        Self::Link(Peer::Redis, Passing::Stalled),
        Self::Link(Peer::Redis, Passing::Reset),
        Self::Link(Peer::Postgres, Passing::Cut),
        Self::Link(Peer::Postgres, Passing::Stalled),
        Self::Link(Peer::Postgres, Passing::Reset),
        Self::Link(Peer::Temporal, Passing::Cut),
        Self::Link(Peer::Temporal, Passing::Stalled),
        Self::Link(Peer::Temporal, Passing::Reset),
    ];
}

/// The choices that a seed makes.
struct Schedule {
    replicas: usize,
    /// The size of each replica's pools.
    pool: usize,
    /// The distance to all servers, unless `TEST_RTT` sets it.
    rtt: Duration,
    /// The fault, and the replica that it hits, if any.
    faults: Vec<(Fault, usize, Duration)>,
}

impl Schedule {
    /// Each kind in turn, in another order each time.
    fn new(seed: u64, count: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let replicas = random.random_range(2..=4);
        let pool = if random.random_bool(0.5) { 2 } else { 10 };
        let micros = *[0, 600, 2000, 20_000].choose(&mut random).expect("there are some");
        let mut faults = Vec::new();
        while faults.len() < count {
            let kinds: Vec<Fault> =
                Fault::ALL.choose_multiple(&mut random, FAULTS).copied().collect();
            for fault in kinds {
                let replica = random.random_range(0..replicas);
                let lasts = Duration::from_millis(random.random_range(200..3000));
                faults.push((fault, replica, lasts));
            }
        }
        faults.truncate(count);
        let rtt = if rtt().is_zero() { Duration::from_micros(micros) } else { rtt() };
        Self { replicas, pool, rtt, faults }
    }
}

struct Fleet {
    redis: Redis,
    to_redis: Link,
    postgres: Postgres,
    database: Database,
    to_postgres: Link,
    temporal: Temporal,
    to_temporal: Link,
    /// The wall clock of all replicas: they jump together, the clock of the database does not.
    clock: Clock,
    _clock: TempDir,
    /// The prefix of all workflow ids of this run.
    prefix: String,
    worker: Service,
    replicas: Vec<Service>,
    /// How often rows were spoiled.
    spoiled: usize,
}

impl Fleet {
    async fn start(schedule: &Schedule) -> Self {
        let (redis, postgres, temporal) =
            tokio::join!(Redis::start(), Postgres::start(), Temporal::start());
        let database = Database::create_on(postgres.url()).await;
        let to_redis = Link::to(&redis.address()).await;
        let to_postgres = Link::to(database.address()).await;
        let to_temporal = Link::to(&temporal.address()).await;
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::new(folder.path());
        let prefix = format!("chaos-{}/", uuid::Uuid::now_v7());
        let worker = setup(&redis.address(), &database.url, &temporal.address(), &prefix);
        let worker = worker.argument("worker").launch();
        let url = database.url_at(&to_postgres.address);
        let pool = schedule.pool.to_string();
        let replica = || {
            let setup = setup(&to_redis.address, &url, &to_temporal.address, &prefix)
                .set("database.pool.max_size", &pool)
                .set("event_broker.pool.max_size", &pool)
                .away(schedule.rtt);
            clock.rule(setup).start()
        };
        let mut running = Vec::new();
        for _ in 0..schedule.replicas {
            running.push(replica().await);
        }
        for replica in &running {
            replica.healthy().await;
        }
        Self {
            redis,
            to_redis,
            postgres,
            database,
            to_postgres,
            temporal,
            to_temporal,
            clock,
            _clock: folder,
            prefix,
            worker,
            replicas: running,
            spoiled: 0,
        }
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
            Fault::JumpClocks => {
                self.clock.jump(-4000);
                sleep(lasts).await;
                self.clock.jump(4000);
                sleep(lasts).await;
                self.clock.jump(0);
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
            Fault::EmptyRedis => {
                self.redis.forget_everything();
                sleep(lasts).await;
                self.redis.up().await;
            }
            Fault::CrashPostgres => {
                self.postgres.crash();
                sleep(lasts).await;
                self.postgres.up().await;
            }
            Fault::StopTemporal => {
                self.temporal.down();
                // Longer than any retry interval, which is up to half a minute.
                sleep(lasts * 10).await;
                self.temporal.up().await;
            }
            Fault::EndPostgresSessions => self.end_postgres_sessions().await,
            Fault::KillWorker => self.kill_worker(lasts).await,
            Fault::SpoilRows => self.spoil_rows().await,
            Fault::KillBetween(peer) => {
                self.link(peer).set(Passing::Stalled);
                sleep(lasts).await;
                let killed = self.replicas.remove(replica).kill();
                self.link(peer).set(Passing::Open);
                ledger.send_to(&self.running(None));
                self.replicas.push(killed.start().await);
            }
            Fault::Link(peer, passing) => {
                let link = self.link(peer);
                link.set(passing);
                sleep(lasts).await;
                link.set(Passing::Open);
            }
        }
        ledger.send_to(&self.running(None));
    }

    async fn end_postgres_sessions(&self) {
        let name = self.database.name();
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        );
        self.database.execute(&end).await;
    }

    async fn kill_worker(&mut self, lasts: Duration) {
        signal(&self.worker.child, "-KILL");
        self.worker.exit_code().await;
        sleep(lasts).await;
        let (redis, temporal) = (self.redis.address(), self.temporal.address());
        let worker = setup(&redis, &self.database.url, &temporal, &self.prefix);
        self.worker = worker.argument("worker").launch();
    }

    async fn spoil_rows(&mut self) {
        let id = format!("spoiled-{}", self.spoiled);
        self.spoiled += 1;
        self.database.within(&unreadable_event(&id, 0)).await;
        self.database.within(&unreadable_execution(&id, "accepted", "temporal")).await;
    }

    fn link(&self, peer: Peer) -> &Link {
        match peer {
            Peer::Redis => &self.to_redis,
            Peer::Postgres => &self.to_postgres,
            Peer::Temporal => &self.to_temporal,
        }
    }

    fn running(&self, but: Option<usize>) -> Vec<&Service> {
        let running = self.replicas.iter().enumerate().filter(|(n, _)| Some(*n) != but);
        running.map(|(_, service)| service).collect()
    }

    /// Temporal's description of an execution and of its pollers.
    fn tell_of(&self, id: &str) -> String {
        let workflow = format!("{}{id}", self.prefix);
        let described = self.temporal.ask(&["workflow", "describe", "--workflow-id", &workflow]);
        let queue = ["task-queue", "describe", "--task-queue", &self.prefix];
        format!("{described}\n{}", self.temporal.ask(&queue))
    }

    /// Keeps the ledger, the logs of the replicas and the database, to find the cause of a failure.
    fn keep(&self, ledger: &Ledger, executions: &BTreeMap<String, usize>) -> PathBuf {
        let folder = tempfile::Builder::new().prefix("chaos-").tempdir().unwrap().keep();
        let ledger = json!({"events": ledger.accepted(), "executions": executions});
        fs::write(folder.join("ledger.json"), ledger.to_string()).unwrap();
        for (number, replica) in self.replicas.iter().enumerate() {
            let files = fs::read_dir(replica.path()).unwrap().map(|entry| entry.unwrap().path());
            for log in files.filter(|file| file.file_stem().is_some_and(|stem| stem == "log")) {
                let name = log.file_name().unwrap().display();
                fs::copy(&log, folder.join(format!("replica-{number}-{name}"))).unwrap();
            }
        }
        let dump = folder.join("database.sql");
        let dumped =
            Command::new("pg_dump").arg("--file").arg(dump).arg(&self.database.url).status();
        if !dumped.is_ok_and(|status| status.success()) {
            eprintln!("the database cannot be dumped");
        }
        folder
    }

    /// The ids of all workflows that Temporal has started for this run, in order.
    fn started(&self) -> Vec<String> {
        let query = format!("WorkflowId STARTS_WITH '{}'", self.prefix);
        let list =
            ["workflow", "list", "--limit", "1000000", "--output", "json", "--query", &query];
        let said: Vec<serde_json::Value> =
            serde_json::from_str(&self.temporal.ask(&list)).unwrap_or_default();
        let id = |run: &serde_json::Value| {
            let id = run["execution"]["workflowId"].as_str()?;
            Some(id.strip_prefix(&self.prefix)?.to_owned())
        };
        let mut ids: Vec<String> = said.iter().filter_map(id).collect();
        ids.sort_unstable();
        ids
    }
}

fn setup(redis: &str, database: &str, temporal: &str, prefix: &str) -> Setup {
    Setup::new()
        .variable("REDIS_URL", &format!("redis://{redis}"))
        .variable("DATABASE_URL", database)
        .variable("TEMPORAL_ADDRESS", temporal)
        .variable("TEMPORAL_TASK_QUEUE", prefix)
        .variable("RUST_LOG", "info,agentarea_api::services=debug")
        .set("execution_service.temporal.workflow_id_prefix", &format!("\"{prefix}\""))
        .set("execution_service.probe.timeout", "\"400ms\"")
        .set("executions.follow_interval", "\"200ms\"")
        .set("executions.lease", "\"3s\"")
        .set("executions.confirm_within", "\"2s\"")
        .set("outbox.lease", "\"2s\"")
        // Longer than the whole run, because events older than the window are not delivered again
        // to an empty Redis.
        .set("outbox.replay_window", "\"1d\"")
}

/// Starts executions, retrying each until it is accepted, and records them.
async fn start_executions(
    ledger: Ledger,
    client: usize,
    accepted: Arc<Mutex<BTreeMap<String, usize>>>,
) {
    let http = http_client().timeout(Duration::from_secs(5)).build().unwrap();
    let mut turn = client;
    for n in 0.. {
        let id = format!("c{client}-{n}");
        let request = |base: String| {
            http.post(format!("{base}/v1/executions"))
                .header("Idempotency-Key", &id)
                .json(&json!({"workflow": "echo", "id": id, "input": n}))
        };
        if !ledger.until_accepted(&mut turn, request).await {
            return;
        }
        accepted.lock().insert(id.clone(), n);
        // One worker runs fewer executions than four clients start, so the backlog must be limited.
        if n % 10 == 9 {
            until_ended(&ledger, &http, &id).await;
        }
    }
}

async fn until_ended(ledger: &Ledger, http: &Client, id: &str) {
    let mut turn = 0;
    while !ledger.stop.is_cancelled() {
        let url = format!("{}/v1/executions/{id}?wait=2s", ledger.base(turn));
        turn += 1;
        let Ok(answer) = http.get(url).send().await else { continue };
        let execution: serde_json::Value = answer.json().await.unwrap_or_default();
        if execution["finished_at"].is_string() {
            return;
        }
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
    let schedule = Schedule::new(seed, number("CHAOS_FAULTS").unwrap_or(FAULTS));
    let Schedule { replicas, pool, rtt, .. } = schedule;
    println!("CHAOS_SEED={seed}, {replicas} replicas with pools of {pool}, servers {rtt:?} away");
    let begin = Instant::now();
    let mut fleet = Fleet::start(&schedule).await;
    let ledger = Ledger::new(&fleet.running(None));
    let executions = Arc::new(Mutex::new(BTreeMap::new()));
    let proof = async {
        suffer_all(&mut fleet, schedule, &ledger, &executions).await;
        let executions = executions.lock().clone();
        let started = each_was_run_once(&fleet, &executions).await;
        let service = &fleet.replicas[0];
        let repeats = ledger.check(service).await;
        service.healthy().await;
        for destination in ["event_broker", "execution_service"] {
            only_what_is_spoiled_is_dead(service, destination, fleet.spoiled).await;
        }
        println!(
            "{:.0} s: {} events accepted, {repeats} delivered again, {} executions accepted, \
             {started} started; 0 lost, 0 started twice, {} dead letters of each kind, as expected, order kept",
            begin.elapsed().as_secs_f64(),
            ledger.total(),
            executions.len(),
            fleet.spoiled,
        );
    };
    let proved = AssertUnwindSafe(proof).catch_unwind().await;
    if let Err(panic) = proved {
        let kept = fleet.keep(&ledger, &executions.lock());
        eprintln!("CHAOS_SEED={seed} failed, see {}", kept.display());
        resume_unwind(panic);
    }
}

/// Asserts that the dead letters are exactly the rows that cannot be read.
async fn only_what_is_spoiled_is_dead(service: &Service, destination: &str, spoiled: usize) {
    let path = format!("/v1/dead-letters?destination={destination}&limit=200");
    let letters = eventually("what cannot be read is set aside", async || {
        let letters = service.json(&path).await["items"].as_array()?.clone();
        (letters.len() >= spoiled).then_some(letters)
    })
    .await;
    assert_eq!(letters.len(), spoiled, "dead letters without cause: {letters:?}");
    for letter in letters {
        assert!(letter["error"].as_str().unwrap().contains("cannot be read"), "{letter}");
    }
}

/// Injects all faults under load; records the accepted executions.
async fn suffer_all(
    fleet: &mut Fleet,
    schedule: Schedule,
    ledger: &Ledger,
    executions: &Arc<Mutex<BTreeMap<String, usize>>>,
) {
    let begin = Instant::now();
    let mut starting = JoinSet::new();
    for client in 0..4 {
        starting.spawn(start_executions(ledger.clone(), client, Arc::clone(executions)));
    }
    let mut happened: BTreeMap<Fault, usize> = BTreeMap::new();
    ledger
        .under_load(async {
            for (fault, replica, lasts) in schedule.faults {
                println!("{:>7.1} s {fault:?} {replica} {lasts:?}", begin.elapsed().as_secs_f64());
                fleet.suffer(fault, replica, lasts, ledger).await;
                // In the end everything works again.
                ledger.more(50).await;
                *happened.entry(fault).or_default() += 1;
            }
        })
        .await;
    while let Some(client) = starting.join_next().await {
        client.expect("every answer was 202, 503 or 504");
    }
    let mut table = String::new();
    for (fault, times) in happened {
        write!(table, " {fault:?} {times},").unwrap();
    }
    println!("{} happened", table.trim_matches([' ', ',']));
}

/// Asserts that all accepted executions end as expected and that none was started twice. Returns
/// the number of started ones.
async fn each_was_run_once(fleet: &Fleet, executions: &BTreeMap<String, usize>) -> usize {
    let service = &fleet.replicas[0];
    for (id, input) in executions {
        // Temporal gives up a step of a killed worker only after the heartbeat timeout.
        let mut ended = None;
        for _ in 0..3 {
            let result = timeout(DEADLINE.mul_f64(0.9), service.result(id));
            ended = result.await.ok();
            if ended.is_some() {
                break;
            }
        }
        let Some(ended) = ended else { panic!("{id} does not end; {}", fleet.tell_of(id)) };
        assert_eq!((&ended["status"], &ended["result"]), (&json!("completed"), &json!(input)));
    }
    // The last request of each client may have been accepted without its answer arriving.
    let started = eventually("Temporal lists what it has started", async || {
        let started = fleet.started();
        let all = executions.keys().all(|id| started.binary_search(id).is_ok());
        all.then_some(started)
    })
    .await;
    let twice: Vec<_> = started.windows(2).filter(|two| two[0] == two[1]).collect();
    assert!(twice.is_empty(), "started twice: {twice:?}");
    let (started, most) = (started.len(), executions.len() + 4);
    assert!(started <= most, "{started} were started, {most} were accepted at most");
    started
}
