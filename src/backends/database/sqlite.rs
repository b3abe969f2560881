//! The embedded database: one file, one process.

mod file;

use std::{
    fs::{self, OpenOptions},
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, OnceLock, Weak},
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

use self::file::{FileLock, Identity, Keeps, unusable};
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
    error::{Error, ErrorKind, RetryClass},
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
        let file = OnceLock::new();
        let connector = Arc::new(Connector { config, lock: Arc::clone(&lock), file });
        // Two builds at once would also meet at the switch to WAL, for which SQLite does not wait.
        let turn = Arc::clone(&lock.turn).lock_owned().await;
        let mut conn = connector.connect().await?;
        refuse_remains(&lock, &mut conn).await?;
        migrate(&mut conn).await?;
        check_version(&queries::oldest_program(&mut conn).await?)?;
        lock.trust()?;
        drop(turn);
        let pool = Pool::new(Arc::clone(&connector), context)?;
        let instance = Arc::clone(&context.instance);
        let probe = tokio::sync::Mutex::new(Some(conn));
        let patience = context.pool.acquire_timeout;
        Ok(Arc::new(Db { pool, connector, probe, instance, lock, patience }))
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
        let mut conn = open(&config.path, false).await?;
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

const HAS_TABLES: &str = "EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'schema_info')";
const IS_WHOLE: &str = "(SELECT quick_check = 'ok' FROM pragma_quick_check LIMIT 1)";

async fn is_true(conn: &mut Conn, expression: &str) -> Result<bool, Error> {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(expression))
        .get_result(conn)
        .await
        .map_err(query_error)
}

/// What this process has used before is not begun anew in an empty file, nor in what is left of it.
async fn refuse_remains(lock: &FileLock, conn: &mut Conn) -> Result<(), Error> {
    let Some(is_damaged) = lock.used_before() else { return Ok(()) };
    if !is_true(conn, HAS_TABLES).await? {
        return Err(lock.lost("was replaced by one without its tables"));
    }
    if is_damaged && !is_true(conn, IS_WHOLE).await? {
        return Err(lock.lost("was damaged"));
    }
    Ok(())
}

/// Writes what the probe writes, if the tables are there.
async fn try_tables(conn: &mut Conn, instance: &str) -> Result<Option<&'static str>, Error> {
    if !is_true(conn, HAS_TABLES).await? {
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
    queries::transfer::unfinished(&mut open(path, false).await?).await
}

/// Opens the file, which is only made if it may be.
async fn open(path: &Path, make: bool) -> Result<Conn, Error> {
    let mode = if make { "rwc" } else { "rw" };
    let established = Conn::establish(&format!("{}?mode={mode}", uri(path))).await;
    established.map_err(|error| {
        let message = format!("{} cannot be opened", path.display());
        Error::new(ErrorKind::Unavailable, message)
            .with_remedy("check that the path names an SQLite file that this process may open")
            .with_source(error)
    })
}

/// The path as `SQLite` takes it together with a mode.
fn uri(path: &Path) -> String {
    // Of an absolute one, two slashes at the begin would be taken for those before a host.
    let scheme = if path.is_absolute() { "file://" } else { "file:" };
    let path = path.display().to_string();
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    format!("{scheme}{path}")
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

struct Connector {
    config: Config,
    lock: Arc<FileLock>,
    /// What its first connection has opened.
    file: OnceLock<Identity>,
}

impl Connector {
    async fn open(&self) -> Result<Conn, Error> {
        let make = self.lock.may_open(self.file.get().copied())?;
        let mut conn = open(&self.config.path, make).await?;
        let (identity, file) = self.lock.opened()?;
        conn.set_instrumentation(Keeps { _file: file });
        if *self.file.get_or_init(|| identity) == identity {
            Ok(conn)
        } else {
            Err(self.lock.lost("was replaced"))
        }
    }
}

#[async_trait]
impl Connect for Connector {
    type Conn = Conn;

    async fn connect(&self) -> Result<Conn, Error> {
        let mut conn = self.open().await?;
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
        self.lock.log_is_open();
        Ok(conn)
    }

    fn is_broken(conn: &mut Conn) -> bool {
        PoolableConnection::is_broken(conn)
    }
}

/// The database in a file.
struct Db {
    pool: Pool<Connector>,
    connector: Arc<Connector>,
    /// The probe's own connection, so that a busy pool does not look like an outage.
    probe: tokio::sync::Mutex<Option<Conn>>,
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
        // Those who read go too, or it would never be let go of.
        self.check_name()?;
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
        let shrunk_to = self.check_name()?;
        let mut conn = self.pool.get().await?;
        self.check_size(&mut conn, shrunk_to).await?;
        Ok(Writer { conn, _turn: turn, _place: None })
    }

    /// Whether what the connections have open still is the database, and to what size it has shrunk.
    /// If it is not, they are closed.
    fn check_name(&self) -> Result<Option<u64>, Error> {
        self.lock.check().inspect_err(|_| self.let_go())
    }

    /// A file that has become smaller was truncated, or somebody has tidied it up with `VACUUM`.
    async fn check_size(&self, conn: &mut Conn, shrunk_to: Option<u64>) -> Result<(), Error> {
        let Some(size) = shrunk_to else { return Ok(()) };
        let needed = "page_count * page_size FROM pragma_page_count, pragma_page_size";
        let needed: i64 = diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(needed))
            .get_result(conn)
            .await
            // It may be too short to be read at all.
            .map_err(|error| self.lock.is_truncated().with_source(error))?;
        if u64::try_from(needed).is_ok_and(|needed| needed > size) {
            return Err(self.lock.is_truncated());
        }
        self.lock.has_shrunk_to(size);
        Ok(())
    }

    /// Closes the connections to a file that is no longer the database: only once all are closed,
    /// another is opened.
    fn let_go(&self) {
        self.pool.close_idle();
        if let Ok(mut probe) = self.probe.try_lock() {
            *probe = None;
        }
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
        let mut kept = self.probe.lock().await;
        let _turn = self.wait(&self.lock.turn).await?;
        let shrunk_to = self.check_name().inspect_err(|_| *kept = None)?;
        let conn = match &mut *kept {
            Some(conn) => conn,
            None => kept.insert(self.connector.connect().await?),
        };
        self.check_size(conn, shrunk_to).await?;
        queries::touch_instance(conn, &self.instance).await
    }

    async fn close(&self) {
        self.pool.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

/// What was committed into a file that has gone meanwhile is lost, unless the file comes back.
async fn committed(db: &Db, conn: &mut Conn) -> Result<(), Error> {
    let shrunk_to = db.check_name();
    let kept = match shrunk_to {
        Ok(shrunk_to) => db.check_size(conn, shrunk_to).await,
        Err(error) => Err(error),
    };
    kept.map_err(|error| error.with_retry(RetryClass::MaybeSent))
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
mod tests;
