//! The guarantees of the pool, on real databases.

use std::{any::Any, io, sync::Arc, time::Duration};

#[cfg(feature = "sqlite")]
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, interval};
use tracing::Instrument;

use super::{Database, contract};
#[cfg(feature = "postgres")]
use crate::backends::test_server::{Link, PostgresDatabase, SecretFile};
use crate::{
    config::Pool,
    connection::{Managed, PoolStatus},
    error::{Error, ErrorKind},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

const DEADLINE: Duration = Duration::from_secs(30);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Nothing happens without being triggered by the test.
fn quiet() -> Pool {
    Pool {
        max_lifetime: Duration::ZERO,
        idle_timeout: Duration::ZERO,
        keepalive: Duration::ZERO,
        leak_after: Duration::ZERO,
        ..Pool::default()
    }
}

async fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    let mut pace = interval(millis(5));
    loop {
        pace.tick().await;
        if let Some(found) = attempt() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
    }
}

/// A database used as in the program: through its managed connection.
struct World {
    database: Managed<dyn Database>,
    metrics: Arc<Metrics>,
}

impl World {
    async fn new(backend: &str, table: Value, pool: Pool) -> Self {
        let metrics = Metrics::new("0", "0");
        let database = super::managed(backend, table, pool, &metrics, &Tasks::default());
        let world = Self { database, metrics };
        // The first call waits for the migrations, for as long as they take.
        let _lease = world.database.client().lease().await.unwrap();
        world
    }

    async fn look(&self) -> Result<(), Error> {
        self.database.client().run("nobody").await.map(drop)
    }

    async fn insert(&self) -> Result<(), Error> {
        self.database.client().insert_run(&contract::runs::request()).await.map(drop)
    }

    fn pool(&self) -> PoolStatus {
        self.database.report().pool.unwrap()
    }

    /// The total time that calls waited before they began.
    fn waited(&self) -> Duration {
        let report = self.database.report();
        report.acquire_mean * u32::try_from(report.uses).unwrap()
    }

    /// The value of a metric of this connection.
    fn count(&self, metric: &str) -> u64 {
        let text = self.metrics.text();
        let value = text.lines().find_map(|line| line.strip_prefix(metric));
        value.unwrap_or_else(|| panic!("{metric} is missing")).trim().parse().unwrap()
    }

    fn phase(&self, phase: &str) -> u64 {
        let series = format!(r#"{{connection="database",phase="{phase}"}}"#);
        self.count(&format!("agentarea_connection_acquire_seconds_count{series}"))
    }

    fn leaks(&self) -> u64 {
        self.count(r#"agentarea_connection_leaks_total{connection="database"}"#)
    }
}

/// Keeps writers waiting until it is dropped.
type Block = Box<dyn Any + Send>;

#[cfg(feature = "postgres")]
async fn block_postgres(url: &str) -> Block {
    let mut conn = diesel_async::AsyncPgConnection::establish(url).await.unwrap();
    conn.batch_execute("BEGIN; LOCK TABLE runs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    Box::new(conn)
}

#[cfg(feature = "sqlite")]
async fn block_sqlite(table: &Value) -> Block {
    let path = table["path"].as_str().unwrap();
    let mut conn =
        SyncConnectionWrapper::<diesel::SqliteConnection>::establish(path).await.unwrap();
    conn.batch_execute("BEGIN IMMEDIATE").await.unwrap();
    Box::new(conn)
}

/// A folder that is removed after the test, and the table of a database in it.
#[cfg(feature = "sqlite")]
fn sqlite() -> (tempfile::TempDir, Value) {
    let folder = tempfile::tempdir().unwrap();
    let table = json!({"path": folder.path().join("pool.db")});
    (folder, table)
}

/// The lines that this thread logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone());
        tracing::subscriber::set_default(lines.finish())
    }

    fn lines_with(&self, text: &str) -> Vec<String> {
        let all = String::from_utf8(self.0.lock().clone()).unwrap();
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

async fn idle_connections_are_closed_and_opened_again(world: World) {
    for round in 1..=2 {
        let looks = join_all((0..5).map(|_| world.look())).await;
        assert!(looks.iter().all(Result::is_ok), "{looks:?}");
        assert!(world.phase("connect") > round, "one for the pool besides the build's");
        eventually("all idle connections are closed", || {
            let pool = world.pool();
            (pool.idle + pool.in_use == 0).then_some(())
        })
        .await;
    }
}

fn closing_idle() -> Pool {
    Pool { idle_timeout: millis(100), ..quiet() }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn idle_connections_to_postgres_are_closed_and_opened_again() {
    let database = PostgresDatabase::create().await;
    let table = json!({"url": database.url});
    idle_connections_are_closed_and_opened_again(
        World::new("postgres", table, closing_idle()).await,
    )
    .await;
    database.drop().await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn idle_connections_to_sqlite_are_closed_and_opened_again() {
    let (_folder, table) = sqlite();
    idle_connections_are_closed_and_opened_again(World::new("sqlite", table, closing_idle()).await)
        .await;
}

#[cfg(feature = "postgres")]
async fn a_held_connection_is_reported_once(world: World, block: Block) {
    let log = Log::default();
    let _capturing = log.capture();
    let insert = |request_id: &'static str| {
        world.insert().instrument(tracing::info_span!("request", request_id))
    };
    let both = async {
        let leak = insert("first");
        tokio::pin!(leak);
        let reported = eventually("the first is reported", || (world.leaks() == 1).then_some(()));
        tokio::select! {
            done = &mut leak => panic!("nothing blocked it: {done:?}"),
            () = reported => {}
        }
        // By the time the second is reported, the first has been checked again.
        let second = insert("second");
        tokio::pin!(second);
        let reported = eventually("the second is reported", || (world.leaks() == 2).then_some(()));
        tokio::select! {
            done = &mut leak => panic!("nothing blocked it: {done:?}"),
            done = &mut second => panic!("nothing blocked it: {done:?}"),
            () = reported => {}
        }
        drop(block);
        let (first, second) = tokio::join!(leak, second);
        (first.unwrap(), second.unwrap())
    };
    both.await;
    let reports = log.lines_with("is held for longer than pool.leak_after");
    assert_eq!(reports.len(), 2, "{reports:?}");
    for (report, request) in reports.iter().zip(["first", "second"]) {
        assert!(report.contains("WARN"), "{report}");
        assert!(report.contains(&format!("request_id=\"{request}\"")), "{report}");
        assert!(report.contains("connection=\"database\" operation=\"insert_run\""), "{report}");
    }
    world.look().await.unwrap();
    assert_eq!(world.leaks(), 2);
}

fn reporting_leaks() -> Pool {
    Pool { leak_after: millis(200), ..quiet() }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_held_connection_to_postgres_is_reported_once_with_operation_and_request() {
    let database = PostgresDatabase::create().await;
    let world = World::new("postgres", json!({"url": database.url}), reporting_leaks()).await;
    a_held_connection_is_reported_once(world, block_postgres(&database.url).await).await;
    database.drop().await;
}

/// Writers to `SQLite` take turns before they take a connection, so only the first can hold one.
#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_held_connection_to_sqlite_is_reported_with_operation_and_request() {
    let (_folder, table) = sqlite();
    let world = World::new("sqlite", table.clone(), reporting_leaks()).await;
    let block = block_sqlite(&table).await;
    let log = Log::default();
    let _capturing = log.capture();
    let leak = world.insert().instrument(tracing::info_span!("request", request_id = "first"));
    let reported = async {
        eventually("it is reported", || (world.leaks() == 1).then_some(())).await;
        drop(block);
    };
    let (inserted, ()) = tokio::join!(leak, reported);
    inserted.unwrap();
    let reports = log.lines_with("is held for longer than pool.leak_after");
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert!(reports[0].contains("request_id=\"first\""), "{reports:?}");
    assert!(reports[0].contains("connection=\"database\" operation=\"insert_run\""), "{reports:?}");
}

async fn a_full_pool_is_an_overload_of_ours(world: World, block: Block) {
    let before = world.waited();
    let held = world.insert();
    tokio::pin!(held);
    let refused = async {
        eventually("the pool is full", || (world.pool().in_use == 1).then_some(())).await;
        world.look().await.unwrap_err()
    };
    let error = tokio::select! {
        done = &mut held => panic!("nothing blocked it: {done:?}"),
        error = refused => error,
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(!error.outcome_unknown());
    let waited = world.waited().saturating_sub(before);
    assert!(waited >= millis(99), "the report tells how long calls wait: {waited:?}");
    drop(block);
    held.await.unwrap();
    world.look().await.unwrap();
}

fn one_at_a_time() -> Pool {
    Pool { max_size: 1, acquire_timeout: millis(100), ..quiet() }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_full_pool_of_postgres_is_an_overload_of_ours() {
    let database = PostgresDatabase::create().await;
    let world = World::new("postgres", json!({"url": database.url}), one_at_a_time()).await;
    a_full_pool_is_an_overload_of_ours(world, block_postgres(&database.url).await).await;
    database.drop().await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_full_pool_of_sqlite_is_an_overload_of_ours() {
    let (_folder, table) = sqlite();
    let world = World::new("sqlite", table.clone(), one_at_a_time()).await;
    a_full_pool_is_an_overload_of_ours(world, block_sqlite(&table).await).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_connection_that_died_silently_is_found_before_a_caller_meets_it() {
    let database = PostgresDatabase::create().await;
    let link = Link::to(database.address()).await;
    let table = json!({"url": database.url_at(&link.address)});
    let pool = Pool { keepalive: millis(100), acquire_timeout: millis(500), ..quiet() };
    let world = World::new("postgres", table, pool).await;
    let looks = join_all((0..5).map(|_| world.look())).await;
    assert!(looks.iter().all(Result::is_ok), "{looks:?}");

    eventually("idle connections are checked", || (world.phase("validate") > 10).then_some(()))
        .await;
    assert!(world.pool().idle > 0, "a connection that answers stays");
    link.forget_connections();
    eventually("the dead ones are gone", || (world.pool().idle == 0).then_some(())).await;
    let begin = Instant::now();
    world.look().await.unwrap();
    assert!(begin.elapsed() < millis(400), "no caller waits for a dead connection");
    database.drop().await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_connection_that_the_server_closed_leaves_the_pool_unused() {
    let database = PostgresDatabase::create().await;
    let world = World::new(
        "postgres",
        json!({"url": database.url}),
        Pool { leak_after: millis(100), ..quiet() },
    )
    .await;
    world.look().await.unwrap();
    assert_eq!(world.pool().idle, 1);
    let mut conn = diesel_async::AsyncPgConnection::establish(&database.url).await.unwrap();
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    conn.batch_execute(others).await.unwrap();
    eventually("it is gone", || (world.pool().idle == 0).then_some(())).await;
    world.look().await.unwrap();
    drop(conn);
    database.drop().await;
}

/// Runs lookups until `stop`, counting them in `looks`; returns the errors.
#[cfg(feature = "postgres")]
async fn look_until(
    world: &World,
    looks: &std::sync::atomic::AtomicUsize,
    stop: &tokio_util::sync::CancellationToken,
) -> Vec<Error> {
    let mut errors = Vec::new();
    while !stop.is_cancelled() {
        match world.look().await {
            Ok(()) => drop(looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            Err(error) => errors.push(error),
        }
        tokio::task::yield_now().await;
    }
    errors
}

/// Changes the password ten times while calls run; returns the errors of the calls.
#[cfg(feature = "postgres")]
async fn rotate_under_load(max_lifetime: Duration, kill: bool) -> Vec<Error> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let database = PostgresDatabase::create().await;
    let role = format!("role_{}", uuid::Uuid::now_v7().simple());
    let url = database.give_to(&role, "password-0").await;
    let file = SecretFile::new("password-0");
    // Connecting can take long on a busy machine.
    let pool = Pool { max_size: 4, max_lifetime, acquire_timeout: DEADLINE, ..quiet() };
    let table = json!({"url": url, "password": file.value()});
    let world = World::new("postgres", table, pool).await;
    let looks = AtomicUsize::new(0);
    let stop = tokio_util::sync::CancellationToken::new();
    let log = Log::default();
    let capturing = log.capture();
    let rotation = async {
        for n in 1..=10 {
            file.write(&format!("password-{n}"));
            database.execute(&format!("ALTER ROLE {role} PASSWORD 'password-{n}'")).await;
            if kill {
                let theirs = format!("FROM pg_stat_activity WHERE usename = '{role}'");
                database.execute(&format!("SELECT pg_terminate_backend(pid) {theirs}")).await;
            }
            // More connections than can have been opening with the old password.
            let (opened, before) = (world.phase("connect"), looks.load(Ordering::Relaxed));
            eventually("calls go on over new connections", || {
                let called = looks.load(Ordering::Relaxed) > before + 20;
                (called && world.phase("connect") > opened + if kill { 0 } else { 5 }).then_some(())
            })
            .await;
        }
        stop.cancel();
    };
    let load = join_all((0..8).map(|_| look_until(&world, &looks, &stop)));
    let (errors, ()) = tokio::join!(load, rotation);
    drop(capturing);
    let read_again = log.lines_with("its secret file was read again");
    assert_eq!(read_again.len(), 10, "once for each new password: {read_again:?}");
    assert!(log.lines_with("password-").is_empty(), "no secret is logged");
    drop(world);
    database.drop_with(&role).await;
    errors.into_iter().flatten().collect()
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_password_file_rotates_under_load_without_a_failed_call() {
    let errors = rotate_under_load(millis(20), false).await;
    assert!(errors.is_empty(), "{errors:?}");
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn no_call_is_refused_when_a_password_rotates_and_connections_are_killed() {
    let errors = rotate_under_load(Duration::ZERO, true).await;
    let refused = errors.iter().find(|error| error.kind() == ErrorKind::Unauthenticated);
    assert!(refused.is_none(), "{refused:?}");
}
