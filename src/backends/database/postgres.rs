//! `PostgreSQL`: for any number of processes.

mod connect;
mod insert_all;
mod wakeups;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use diesel_async::{
    AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection,
    async_connection_wrapper::AsyncConnectionWrapper, pooled_connection::PoolableConnection,
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::config::Host;

use self::{
    connect::{Connector, SESSION},
    insert_all::insert_all,
};
use super::{
    Database, FAMILY, POSTGRES_VARIABLES,
    errors::{check_version, migration_error, query_error},
    migrations,
};
use crate::{
    backends::pool::{Checkout, Connect, Pool},
    config::{self, BackendConfig, BackendDescriptor, Secret, Section, Table, TableProblem},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// Replicas that start together migrate one after the other; the number is ours alone.
const MIGRATION_LOCK: i64 = 4_917_230_115;

type Conn = AsyncPgConnection;

/// `PostgreSQL`, for any number of instances. Needs version 10 or newer.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// Address, user and database, such as `postgres://user:password@host:5432/agentarea`. Its
    /// `sslmode` is not read: `tls` decides.
    url: Secret,
    /// The password, if it does not stand in `url`.
    password: Option<Secret>,
    /// `disable`: no TLS. `prefer`: TLS if the server offers it, its certificate unchecked.
    /// `require`: TLS, its certificate unchecked. `verify`: TLS with a certificate that fits the
    /// host name and comes from `ca_file`, or from a public authority if that is unset.
    tls: Tls,
    /// PEM file with the authorities that `verify` trusts.
    ca_file: Option<PathBuf>,
}

/// How much TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Tls {
    /// None.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always.
    Require,
    /// Always, and with a certificate that is checked.
    Verify,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::from("postgres://postgres@127.0.0.1:5432/agentarea"),
            password: None,
            tls: Tls::Prefer,
            ca_file: None,
        }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        // The parser's message can repeat parts of the URL, so it is not shown.
        if self.url.expose().parse::<tokio_postgres::Config>().is_err() {
            let expected = "cannot be read; expected postgres://user:password@host:5432/database";
            return vec![("url", expected.to_owned())];
        }
        Vec::new()
    }

    fn address(&self) -> String {
        let Ok(url) = self.url.expose().parse::<tokio_postgres::Config>() else {
            return String::new();
        };
        let port = |number: usize| {
            let ports = url.get_ports();
            ports.get(number).or_else(|| ports.last()).copied().unwrap_or(5432)
        };
        let hosts = url.get_hosts().iter().enumerate().map(|(number, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(number)),
            Host::Unix(folder) => folder.display().to_string(),
        });
        let hosts: Vec<String> = hosts.collect();
        let database = url.get_dbname().or(url.get_user()).unwrap_or_default();
        format!("{}/{database}", hosts.join(","))
    }

    fn place_of_data(&self) -> Option<String> {
        let url: tokio_postgres::Config = self.url.expose().parse().ok()?;
        Some(format!("{:?} {:?} {:?}", url.get_hosts(), url.get_ports(), url.get_dbname()))
    }
}

pub(super) struct Factory;

#[async_trait]
impl BackendFactory<dyn Database> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "postgres",
            variables: &POSTGRES_VARIABLES,
            shared: true,
            example: "DATABASE_URL=postgres://user:password@postgres:5432/agentarea",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn Database>, Error> {
        let config: Config = section.read()?;
        let connector = Arc::new(Connector::new(&config, context)?);
        let mut conn = connector.connect().await?;
        conn = migrate(conn).await?;
        check_version(&queries::oldest_program(&mut conn).await?)?;
        let pool = Pool::new(Arc::clone(&connector), context)?;
        let probe = tokio::sync::Mutex::new(Some(conn));
        let (ear, instance) = (tokio::sync::Mutex::default(), Arc::clone(&context.instance));
        Ok(Arc::new(Db { pool, connector, probe, ear, instance }))
    }

    async fn check(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Option<&'static str>, Error> {
        let connector = Connector::new(&section.read()?, context)?;
        let mut conn = connector.connect().await?;
        refuse_replica(&mut conn).await?;
        if !is_true(&mut conn, "to_regclass('schema_info') IS NOT NULL").await? {
            refuse_without_rights(&mut conn).await?;
            return Ok(Some(super::NO_TABLES));
        }
        check_version(&queries::oldest_program(&mut conn).await?)?;
        conn.batch_execute("BEGIN").await.map_err(query_error)?;
        queries::touch_instance(&mut conn, &context.instance).await?;
        conn.batch_execute("ROLLBACK").await.map_err(query_error)?;
        Ok(None)
    }

    fn build_timeout(&self, _pool: &config::Pool) -> Duration {
        super::MIGRATION_TIMEOUT
    }
}

async fn is_true(conn: &mut Conn, expression: &str) -> Result<bool, Error> {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(expression))
        .get_result(conn)
        .await
        .map_err(query_error)
}

async fn refuse_replica(conn: &mut Conn) -> Result<(), Error> {
    if is_true(conn, "pg_is_in_recovery()").await? {
        return Err(Error::new(ErrorKind::ReadOnly, "the server is a replica in recovery"));
    }
    Ok(())
}

/// Whether start could make the tables.
async fn refuse_without_rights(conn: &mut Conn) -> Result<(), Error> {
    if is_true(conn, "current_setting('transaction_read_only')::bool").await? {
        let message =
            "default_transaction_read_only is set for the user, the database or the server";
        let remedy = "set default_transaction_read_only = off for the user";
        return Err(Error::new(ErrorKind::ReadOnly, message).with_remedy(remedy));
    }
    let may_create = "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";
    if !is_true(conn, may_create).await? {
        let message = "the tables are not there yet, and the user may not create them";
        return Err(Error::new(ErrorKind::Forbidden, message));
    }
    Ok(())
}

/// Applies what is missing, and waits for locks as long as that takes. The lock ends with the
/// connection, should this process die.
async fn migrate(mut conn: Conn) -> Result<Conn, Error> {
    conn.batch_execute("SET lock_timeout = 0").await.map_err(query_error)?;
    if !is_true(&mut conn, &format!("pg_try_advisory_lock({MIGRATION_LOCK})")).await? {
        tracing::info!("another instance migrates the schema, waiting for it");
        let lock = format!("SELECT pg_advisory_lock({MIGRATION_LOCK})");
        conn.batch_execute(&lock).await.map_err(query_error)?;
    }
    // On a thread of its own: the harness blocks, and a runtime's thread that blocks inside a future
    // can swallow the wake-up of a future beside it.
    let migration = tokio::task::spawn_blocking(move || {
        let mut conn = AsyncConnectionWrapper::<Conn>::from(conn);
        let migrated = migrations::apply(&mut conn, MIGRATIONS);
        (migrated, conn.into_inner())
    });
    let (migrated, mut conn) = migration.await.map_err(migration_error)?;
    let unlock = format!("SELECT pg_advisory_unlock({MIGRATION_LOCK}); {SESSION}");
    conn.batch_execute(&unlock).await.map_err(query_error)?;
    migrated.map_err(migration_error)?;
    Ok(conn)
}

/// `PostgreSQL` behind a pool.
struct Db {
    pool: Pool<Connector>,
    connector: Arc<Connector>,
    /// The probe's own connection, so that a busy pool does not look like an outage.
    probe: tokio::sync::Mutex<Option<Conn>>,
    /// The connection that listens to other processes, once it is asked for.
    ear: tokio::sync::Mutex<Option<Conn>>,
    instance: Arc<str>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresDatabase")
            .field("pool", &self.pool.status())
            .finish_non_exhaustive()
    }
}

impl Db {
    async fn reader(&self) -> Result<Checkout<Connector>, Error> {
        self.pool.get().await
    }

    async fn writer(&self) -> Result<Checkout<Connector>, Error> {
        self.pool.get().await
    }

    async fn first_writer(&self) -> Result<Checkout<Connector>, Error> {
        self.pool.get().await
    }
}

/// Whether whatever another process has claimed, it died holding.
const SERVES_ONE_PROCESS: bool = false;

impl Database for Db {
    fn serves_one_process(&self) -> bool {
        SERVES_ONE_PROCESS
    }
}

#[async_trait]
impl Backend for Db {
    async fn probe(&self) -> Result<(), Error> {
        let mut kept = self.probe.lock().await;
        // It comes back when it has answered: after a failure, or a probe that was cut off, the next
        // one opens another.
        let usable = |mut conn: Conn| (!PoolableConnection::is_broken(&mut conn)).then_some(conn);
        let (mut conn, anew) = match kept.take().and_then(usable) {
            Some(conn) => (conn, false),
            None => (self.connector.connect().await?, true),
        };
        refuse_replica(&mut conn).await?;
        queries::touch_instance(&mut conn, &self.instance).await?;
        *kept = Some(conn);
        if anew {
            self.pool.close_idle();
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

/// The server has answered for it.
async fn committed(_db: &Db, _conn: &mut Conn) -> Result<(), Error> {
    Ok(())
}

/// Several processes compare these times, so they come from the server's clock.
async fn now(conn: &mut Conn) -> Result<i64, Error> {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::BigInt>(
        "(extract(epoch from clock_timestamp()) * 1000000)::bigint",
    ))
    .get_result(conn)
    .await
    .map_err(query_error)
}

macro_rules! transaction {
    ($conn:expr, $body:expr) => {
        diesel_async::AsyncConnection::transaction(&mut *$conn, $body).await
    };
}

/// Replicas that claim at once take different rows.
macro_rules! skip_locked {
    ($query:expr) => {
        $query.for_update().skip_locked()
    };
}

/// Keeps the rows as they are until the transaction ends.
macro_rules! locked {
    ($query:expr) => {
        $query.for_update()
    };
}

#[path = "queries/mod.rs"]
mod queries;

#[cfg(test)]
mod tests {
    mod over_tls;

    use super::*;
    use crate::backends::{database::contract, test_server};

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_fulfils_the_contract() {
        let database = test_server::PostgresDatabase::create().await;
        contract::suite(&Factory, &Section(serde_json::json!({"url": database.url}))).await;
        database.drop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_understands_the_version_before() {
        let server = test_server::PostgresDatabase::create().await;
        let section = Section(serde_json::json!({"url": server.url}));
        let database = Factory.build(&section, &contract::context()).await.unwrap();
        let mut before =
            <AsyncPgConnection as diesel_async::AsyncConnection>::establish(&server.url)
                .await
                .unwrap();
        before.batch_execute(contract::WRITTEN_BY_THE_VERSION_BEFORE).await.unwrap();
        contract::understands_the_version_before(&*database).await;
        drop((before, database));
        server.drop().await;
    }

    #[test]
    fn an_unreadable_url_is_refused_without_showing_it() {
        let config =
            Config { url: Secret::from("postgres://u:hunter2@h:notaport/d"), ..Config::default() };
        let problems = config.check();
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].1.contains("hunter2"));
    }
}
