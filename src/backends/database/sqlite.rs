//! The embedded database: one file, one process.

mod accept;
mod change;
mod config;
mod dialect;
mod file;

use std::{
    fs::{self, OpenOptions},
    path::Path,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use diesel_async::{
    AsyncConnection, RunQueryDsl, SimpleAsyncConnection, pooled_connection::PoolableConnection,
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use parking_lot::Mutex;
use tokio::{sync::OwnedMutexGuard, time::timeout};

use self::{
    config::{Config, Synchronous},
    dialect::Conn,
    file::{FileLock, Identity, Keeps, unusable},
};
use super::{
    Database, FAMILY, SQLITE_VARIABLES, Unfinished,
    dialect::Dialect as _,
    errors::{check_version, migration_error},
    migrations,
};
use crate::{
    backends::pool::{Connect, Pool},
    config::{self as configuration, BackendDescriptor, Section, Table},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
    model::lanes::Slots,
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// The note of a check that runs beside a service.
const IN_USE: &str =
    "another process, probably the service, uses the file; a second service would be refused";

/// Builds the database. Remembers the lock, because a rebuild in the same process must reuse it.
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
        check_version(&statements::oldest_program(&mut conn).await?)?;
        lock.trust()?;
        drop(turn);
        let pool = Pool::new(Arc::clone(&connector), context)?;
        let instance = Arc::clone(&context.instance);
        let probe = tokio::sync::Mutex::new(Some(conn));
        let patience = context.pool.acquire_timeout;
        Ok(Arc::new(Db { pool, connector, probe, instance, lock, patience }))
    }

    /// Works while a service uses the file: the lock excludes a second *service* only, and `SQLite`
    /// itself allows two processes.
    async fn check(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        let config: Config = section.read()?;
        if !config.path.exists() {
            try_folder_of(&config.path)?;
            return Ok(Some("the file does not exist yet; the service creates it when it starts"));
        }
        let in_use = FileLock::is_held(&config.path);
        let mut conn = open(&config.path, false).await?;
        conn.batch_execute("PRAGMA busy_timeout = 1000; BEGIN IMMEDIATE").await?;
        let found = try_tables(&mut conn, &context.instance).await;
        conn.batch_execute("ROLLBACK").await?;
        Ok(found?.or(in_use.then_some(IN_USE)))
    }

    fn build_timeout(&self, _pool: &configuration::Pool) -> Duration {
        super::MIGRATION_TIMEOUT
    }
}

const HAS_TABLES: &str = "EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'schema_info')";
const IS_WHOLE: &str = "(SELECT quick_check = 'ok' FROM pragma_quick_check LIMIT 1)";

async fn is_true(conn: &mut Conn, expression: &str) -> Result<bool, Error> {
    let expression = diesel::dsl::sql::<diesel::sql_types::Bool>(expression);
    Ok(diesel::select(expression).get_result(conn).await?)
}

/// A database that this process has used before is not replaced by an empty file, nor by a damaged
/// one.
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

/// Makes the same write as the probe, if the tables exist.
async fn try_tables(conn: &mut Conn, instance: &str) -> Result<Option<&'static str>, Error> {
    if !is_true(conn, HAS_TABLES).await? {
        return Ok(Some(super::NO_TABLES));
    }
    check_version(&statements::oldest_program(conn).await?)?;
    statements::touch_instance(conn, instance).await?;
    Ok(None)
}

/// Checks that the file and its missing folders could be created, with a temporary file.
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

pub(super) fn default_path() -> std::path::PathBuf {
    Config::default().path
}

/// Settings that are not applied to a file that another process may be using.
pub(super) async fn unfinished_in(path: &Path) -> Result<Unfinished, Error> {
    if !path.exists() {
        return Ok(Unfinished::default());
    }
    statements::transfer::unfinished(&mut open(path, false).await?).await
}

/// Opens the file, creating it only if `make` is true.
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

/// The path as a URI, which `SQLite` requires for a mode.
fn uri(path: &Path) -> String {
    // `SQLite` would read two slashes at the start of an absolute path as the start of a host.
    let scheme = if path.is_absolute() { "file://" } else { "file:" };
    let path = path.display().to_string();
    let path = path.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    format!("{scheme}{path}")
}

/// Applies all missing migrations or none. A second build waits for the write lock and then finds
/// none missing.
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
    /// The file that the first connection of the build has opened.
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
        // The busy timeout comes first, because switching to WAL needs a lock that another
        // connection of this process may hold.
        let settings = format!(
            "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
             PRAGMA synchronous = {synchronous}; PRAGMA foreign_keys = ON;"
        );
        conn.batch_execute(&settings).await?;
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
    /// The probe's own connection, so that a busy pool is not mistaken for an outage.
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
    /// Checks that the connections still have the database file open, and closes them if not.
    /// Returns the size to which the file has shrunk, if it has.
    fn check_name(&self) -> Result<Option<u64>, Error> {
        self.lock.check().inspect_err(|_| self.let_go())
    }

    /// A smaller file was either truncated or compacted with `VACUUM`.
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

    /// Closes the connections to a file that is no longer the database. A new one is opened only
    /// after all are closed.
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

#[async_trait]
impl super::Wakeups for Db {
    async fn wake_others(&self, _: &Slots) -> Result<(), Error> {
        Ok(())
    }

    async fn woken(&self) -> Result<Slots, Error> {
        std::future::pending().await
    }
}

impl Database for Db {
    fn serves_one_process(&self) -> bool {
        Self::SERVES_ONE_PROCESS
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
        statements::touch_instance(conn, &self.instance).await
    }

    async fn close(&self) {
        self.pool.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

#[path = "statements/mod.rs"]
mod statements;

#[cfg(test)]
mod tests;
