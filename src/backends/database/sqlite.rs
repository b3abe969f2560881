//! The embedded database: one file, one process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Weak},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use diesel::QueryResult;
use diesel_async::{
    AsyncConnection, RunQueryDsl, SimpleAsyncConnection, pooled_connection::PoolableConnection,
    sync_connection_wrapper::SyncConnectionWrapper,
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::OwnedMutexGuard, time::timeout};

use super::{
    Database, FAMILY, NewEvent, SQLITE_VARIABLES, Unfinished,
    errors::{check_version, migration_error, query_error},
    migrations,
    rows::OutboxRow,
    schema::outbox,
};
use crate::{
    backends::pool::{Checkout, Connect, Pool},
    config::{self, BackendConfig, BackendDescriptor, Section, Table, TableProblem},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
    model::time,
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// What a check says beside a running service.
const IN_USE: &str =
    "another process, probably the service, uses the file; a second service would be refused";

type Conn = SyncConnectionWrapper<diesel::SqliteConnection>;

/// The database in one file, for one process.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// The file; it and its folder are made when missing. Beside it stand `-wal`, `-shm` and
    /// `.lock`.
    path: PathBuf,
    /// What a commit waits for. `full`: what was accepted survives a power failure. `normal`: it
    /// survives the death of the process, and the last moments before a power failure may be lost.
    synchronous: Synchronous,
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Synchronous {
    /// Until the disk has it.
    Full,
    /// Until the operating system has it.
    Normal,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: PathBuf::from("data/agentarea.db"), synchronous: Synchronous::Full }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        // A URL is meant for another database, and would show in the address.
        let is_url = self.path.to_string_lossy().contains("://");
        let usable =
            !is_url && self.path.file_name().is_some() && self.path != Path::new(":memory:");
        if usable {
            return Vec::new();
        }
        vec![("path", "must be the path of a file, such as \"data/agentarea.db\"".to_owned())]
    }

    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn place_of_data(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }
}

/// Builds the database; remembers the lock it holds, because a rebuild in the same process meets
/// it again.
#[derive(Default)]
pub(super) struct Factory {
    lock: Mutex<Weak<FileLock>>,
}

#[async_trait]
impl BackendFactory<dyn Database> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "sqlite",
            variables: &SQLITE_VARIABLES,
            shared: false,
            example: "DATABASE_URL=sqlite:data/agentarea.db",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn Database>, Error> {
        let config: Config = section.read()?;
        let lock = self.lock(&config.path)?;
        let connector = Arc::new(Connector { config });
        // Two builds at once would also meet at the switch to WAL, for which SQLite does not wait.
        let turn = Arc::clone(&lock.turn).lock_owned().await;
        let mut conn = connector.connect().await?;
        migrate(&mut conn).await?;
        drop(turn);
        check_version(&queries::oldest_program(&mut conn).await?)?;
        let pool = Pool::new(Arc::clone(&connector), context)?;
        let instance = Arc::clone(&context.instance);
        let probe = tokio::sync::Mutex::new(conn);
        let patience = context.pool.acquire_timeout;
        Ok(Arc::new(Db { pool, probe, instance, lock, patience }))
    }

    /// Works beside a service that uses the file: the lock keeps away a second *service*, while
    /// `SQLite` itself lets two processes take turns.
    async fn check(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        let config: Config = section.read()?;
        if !config.path.exists() {
            try_folder_of(&config.path)?;
            return Ok(Some("the file is not there yet; the service makes it when it starts"));
        }
        let in_use = FileLock::is_held(&config.path);
        let mut conn = open(&config.path).await?;
        conn.batch_execute("PRAGMA busy_timeout = 1000; BEGIN IMMEDIATE")
            .await
            .map_err(query_error)?;
        let found = try_tables(&mut conn, &context.instance).await;
        conn.batch_execute("ROLLBACK").await.map_err(query_error)?;
        Ok(found?.or(in_use.then_some(IN_USE)))
    }

    fn build_timeout(&self, _pool: &config::Pool) -> Duration {
        super::MIGRATION_TIMEOUT
    }
}

/// Writes what the probe writes, if the tables are there.
async fn try_tables(conn: &mut Conn, instance: &str) -> Result<Option<&'static str>, Error> {
    let exists = "EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'schema_info')";
    let tables: bool = diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(exists))
        .get_result(conn)
        .await
        .map_err(query_error)?;
    if !tables {
        return Ok(Some(super::NO_TABLES));
    }
    check_version(&queries::oldest_program(conn).await?)?;
    queries::touch_instance(conn, instance).await?;
    Ok(None)
}

/// Whether the file and its missing folders could be made, by a file that is gone at once.
fn try_folder_of(database: &Path) -> Result<(), Error> {
    let absolute =
        std::path::absolute(database).map_err(|error| unusable("the file", database, error))?;
    let existing = absolute.ancestors().skip(1).find(|folder| folder.exists());
    let Some(folder) = existing else { return Ok(()) };
    let trial = folder.join(format!(".agentarea-check-{}", std::process::id()));
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(&trial)
        .and_then(|_made| fs::remove_file(&trial))
        .map_err(|error| unusable("the file", database, error))
}

pub(super) fn default_path() -> PathBuf {
    Config::default().path
}

/// What is not done in a file, which another process may be using.
pub(super) async fn unfinished_in(path: &Path) -> Result<Unfinished, Error> {
    if !path.exists() {
        return Ok(Unfinished::default());
    }
    queries::transfer::unfinished(&mut open(path).await?).await
}

async fn open(path: &Path) -> Result<Conn, Error> {
    let path = path.display();
    Conn::establish(&path.to_string()).await.map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("{path} cannot be opened")).with_source(error)
    })
}

/// Applies what is missing, all of it or nothing. A second build waits for the write lock, and then
/// finds nothing missing.
async fn migrate(conn: &mut Conn) -> Result<(), Error> {
    let migrated = conn.spawn_blocking(|conn| {
        conn.immediate_transaction(|conn| {
            migrations::apply(conn, MIGRATIONS).map_err(diesel::result::Error::QueryBuilderError)
        })
    });
    migrated.await.map_err(migration_error)
}

impl Factory {
    fn lock(&self, database: &Path) -> Result<Arc<FileLock>, Error> {
        let mut held = self.lock.lock();
        if let Some(lock) = held.upgrade().filter(|lock| lock.database == database) {
            return Ok(lock);
        }
        let lock = Arc::new(FileLock::acquire(database)?);
        *held = Arc::downgrade(&lock);
        Ok(lock)
    }
}

/// Keeps a second process away: two would not see each other's wake-ups.
#[derive(Debug)]
struct FileLock {
    database: PathBuf,
    _file: File,
    /// Whose turn it is to write. `SQLite` has one writer at a time, and one that finds the file
    /// locked sleeps and looks again, blocking a thread; here writers wait in line.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Which of those that work in the background asks for it.
    background: Arc<tokio::sync::Mutex<()>>,
}

fn unusable(what: &str, database: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::Forbidden,
        std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{what} for {} cannot be made", database.display())).with_source(error)
}

impl FileLock {
    fn path(database: &Path) -> PathBuf {
        let mut name = database.as_os_str().to_owned();
        name.push(".lock");
        PathBuf::from(name)
    }

    /// Whether another process holds it. Looks without making the file.
    fn is_held(database: &Path) -> bool {
        let file = File::open(Self::path(database));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn acquire(database: &Path) -> Result<Self, Error> {
        let unusable = |what, error| unusable(what, database, error);
        if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| unusable("the folder", error))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(Self::path(database))
            .map_err(|error| unusable("the lock file", error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                database: database.to_owned(),
                _file: file,
                turn: Arc::default(),
                background: Arc::default(),
            }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{} is in use by another process; stop it, choose another file with \
                     DATABASE_URL=sqlite:PATH, or use PostgreSQL for several processes",
                    database.display()
                ),
            )),
            Err(TryLockError::Error(error)) => Err(unusable("the lock", error)),
        }
    }
}

struct Connector {
    config: Config,
}

#[async_trait]
impl Connect for Connector {
    type Conn = Conn;

    async fn connect(&self) -> Result<Conn, Error> {
        let mut conn = open(&self.config.path).await?;
        let synchronous = match self.config.synchronous {
            Synchronous::Full => "FULL",
            Synchronous::Normal => "NORMAL",
        };
        // The busy timeout comes first: switching to WAL needs the lock that another connection
        // of ours may hold.
        let settings = format!(
            "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
             PRAGMA synchronous = {synchronous}; PRAGMA foreign_keys = ON;"
        );
        conn.batch_execute(&settings).await.map_err(query_error)?;
        Ok(conn)
    }

    fn is_broken(conn: &mut Conn) -> bool {
        PoolableConnection::is_broken(conn)
    }
}

/// The database in a file.
struct Db {
    pool: Pool<Connector>,
    /// The probe's own connection, so that a busy pool does not look like an outage.
    probe: tokio::sync::Mutex<Conn>,
    instance: Arc<str>,
    lock: Arc<FileLock>,
    /// How long a writer waits for its turn.
    patience: Duration,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteDatabase").field("pool", &self.pool.status()).finish_non_exhaustive()
    }
}

impl Db {
    async fn reader(&self) -> Result<Checkout<Connector>, Error> {
        self.pool.get().await
    }

    /// For work in the background: of all that waits, one at a time asks for its turn.
    async fn writer(&self) -> Result<Writer, Error> {
        let place = self.wait(&self.lock.background).await?;
        Ok(Writer { _place: Some(place), ..self.first_writer().await? })
    }

    /// For clients that wait to have their work accepted: however much is to be done in the
    /// background, they wait for one of it at most.
    async fn first_writer(&self) -> Result<Writer, Error> {
        let turn = self.wait(&self.lock.turn).await?;
        Ok(Writer { conn: self.pool.get().await?, _turn: turn, _place: None })
    }

    async fn wait(&self, lock: &Arc<tokio::sync::Mutex<()>>) -> Result<OwnedMutexGuard<()>, Error> {
        timeout(self.patience, Arc::clone(lock).lock_owned()).await.map_err(|_| {
            Error::new(ErrorKind::Overloaded, "other writers took longer than pool.acquire_timeout")
        })
    }
}

/// A pooled connection whose turn it is to write.
struct Writer {
    // Fields are dropped in this order: a transaction that was left open ends before the next turn.
    conn: Checkout<Connector>,
    _turn: OwnedMutexGuard<()>,
    _place: Option<OwnedMutexGuard<()>>,
}

impl Deref for Writer {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for Writer {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}

/// Stores all events in one transaction if none of them is known, and nothing otherwise. False then.
///
/// A hop to a thread that may block costs more than the statement that is run there, so all of them
/// share one.
async fn insert_all(conn: &mut Conn, events: &[&NewEvent]) -> QueryResult<bool> {
    use diesel::{RunQueryDsl, result::Error::RollbackTransaction};

    let now = micros();
    let rows: Vec<OutboxRow> = events.iter().map(|event| OutboxRow::new(event, now)).collect();
    let stored = conn.spawn_blocking(move |conn| {
        conn.immediate_transaction(|conn| {
            for row in &rows {
                let insert = diesel::insert_into(outbox::table).values(row);
                if RunQueryDsl::execute(insert.on_conflict_do_nothing(), conn)? == 0 {
                    return Err(RollbackTransaction);
                }
            }
            Ok(true)
        })
    });
    match stored.await {
        Err(RollbackTransaction) => Ok(false),
        stored => stored,
    }
}

/// Whether whatever another process has claimed, it died holding.
const SERVES_ONE_PROCESS: bool = true;

#[async_trait]
impl super::Wakeups for Db {
    async fn wake_others(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn woken(&self) -> Result<(), Error> {
        std::future::pending().await
    }
}

impl Database for Db {
    fn serves_one_process(&self) -> bool {
        SERVES_ONE_PROCESS
    }
}

#[async_trait]
impl Backend for Db {
    async fn probe(&self) -> Result<(), Error> {
        let mut conn = self.probe.lock().await;
        let _turn = self.wait(&self.lock.turn).await?;
        queries::touch_instance(&mut conn, &self.instance).await
    }

    async fn close(&self) {
        self.pool.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

/// One process writes the file, so its clock is the database's.
async fn now(_conn: &mut Conn) -> Result<i64, Error> {
    Ok(micros())
}

/// Begins with the wall clock and goes on with the monotonic one: no claim and no pause may end
/// sooner or later because somebody sets the clock.
fn micros() -> i64 {
    static BEGAN: LazyLock<(i64, Instant)> =
        LazyLock::new(|| (time::now().as_microsecond(), Instant::now()));
    let since = i64::try_from(BEGAN.1.elapsed().as_micros()).unwrap_or(i64::MAX);
    BEGAN.0.saturating_add(since)
}

/// Writers take the write lock at once: upgrading a read lock later could deadlock.
macro_rules! transaction {
    ($conn:expr, $body:expr) => {
        (*$conn).immediate_transaction($body).await
    };
}

/// There are no row locks: the one writer at a time has the whole file.
macro_rules! skip_locked {
    ($query:expr) => {
        $query
    };
}

/// The writer has the whole file.
macro_rules! locked {
    ($query:expr) => {
        $query
    };
}

#[path = "queries/mod.rs"]
mod queries;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::database::contract;

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_fulfils_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let table = serde_json::json!({"path": folder.path().join("new/contract.db")});
        contract::suite(&Factory::default(), &Section(table)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_understands_the_version_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("before.db");
        let section = Section(serde_json::json!({ "path": path }));
        let database = Factory::default().build(&section, &contract::context()).await.unwrap();
        let mut before = open(&path).await.unwrap();
        before.batch_execute(contract::WRITTEN_BY_THE_VERSION_BEFORE).await.unwrap();
        contract::understands_the_version_before(&*database).await;
    }

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let held = FileLock::acquire(&path).unwrap();
        let error = FileLock::acquire(&path).unwrap_err();
        assert!(error.message().contains("in use by another process"), "{error}");
        drop(held);
        assert!(FileLock::acquire(&path).is_ok());
    }
}
