//! `PostgreSQL`: for any number of processes.

mod accept;
mod change;
mod columns;
mod config;
mod connect;
mod dialect;
mod new_events;
mod wakeups;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use diesel_async::{
    RunQueryDsl, SimpleAsyncConnection, async_connection_wrapper::AsyncConnectionWrapper,
    pooled_connection::PoolableConnection,
};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};

use self::{
    config::Config,
    connect::{Connector, SESSION},
    dialect::Conn,
};
use super::{
    Database, FAMILY, POSTGRES_VARIABLES,
    dialect::Dialect as _,
    errors::{check_version, migration_error},
    migrations,
};
use crate::{
    backends::pool::{Connect, Pool},
    config::{self as configuration, BackendDescriptor, Section, Table},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// The advisory lock by which replicas that start together migrate one after the other.
const MIGRATION_LOCK: i64 = 4_917_230_115;

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
        check_version(&statements::oldest_program(&mut conn).await?)?;
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
        check_version(&statements::oldest_program(&mut conn).await?)?;
        conn.batch_execute("BEGIN").await?;
        statements::touch_instance(&mut conn, &context.instance).await?;
        conn.batch_execute("ROLLBACK").await?;
        Ok(None)
    }

    fn build_timeout(&self, _pool: &configuration::Pool) -> Duration {
        super::MIGRATION_TIMEOUT
    }
}

async fn is_true(conn: &mut Conn, expression: &str) -> Result<bool, Error> {
    let expression = diesel::dsl::sql::<diesel::sql_types::Bool>(expression);
    Ok(diesel::select(expression).get_result(conn).await?)
}

async fn refuse_replica(conn: &mut Conn) -> Result<(), Error> {
    if is_true(conn, "pg_is_in_recovery()").await? {
        return Err(Error::new(ErrorKind::ReadOnly, "the server is a replica in recovery"));
    }
    Ok(())
}

/// Checks that a start could create the tables.
async fn refuse_without_rights(conn: &mut Conn) -> Result<(), Error> {
    if is_true(conn, "current_setting('transaction_read_only')::bool").await? {
        let message =
            "default_transaction_read_only is set for the user, the database or the server";
        let remedy = "set default_transaction_read_only = off for the user";
        return Err(Error::new(ErrorKind::ReadOnly, message).with_remedy(remedy));
    }
    let may_create = "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)";
    if !is_true(conn, may_create).await? {
        let message = "the tables do not exist yet, and the user may not create them";
        return Err(Error::new(ErrorKind::Forbidden, message));
    }
    Ok(())
}

/// Applies missing migrations, waiting for locks without a limit. The advisory lock ends with the
/// connection if this process dies.
async fn migrate(mut conn: Conn) -> Result<Conn, Error> {
    conn.batch_execute("SET lock_timeout = 0").await?;
    if !is_true(&mut conn, &format!("pg_try_advisory_lock({MIGRATION_LOCK})")).await? {
        tracing::info!("another instance migrates the schema, waiting for it");
        let lock = format!("SELECT pg_advisory_lock({MIGRATION_LOCK})");
        conn.batch_execute(&lock).await?;
    }
    // On a thread of its own, because the harness blocks, and a blocked runtime thread can swallow
    // the wake-up of another future.
    let migration = tokio::task::spawn_blocking(move || {
        let mut conn = AsyncConnectionWrapper::<Conn>::from(conn);
        let migrated = migrations::apply(&mut conn, MIGRATIONS);
        (migrated, conn.into_inner())
    });
    let (migrated, mut conn) = migration.await.map_err(migration_error)?;
    let unlock = format!("SELECT pg_advisory_unlock({MIGRATION_LOCK}); {SESSION}");
    conn.batch_execute(&unlock).await?;
    migrated.map_err(migration_error)?;
    Ok(conn)
}

/// `PostgreSQL` behind a pool.
struct Db {
    pool: Pool<Connector>,
    connector: Arc<Connector>,
    /// The probe's own connection, so that a busy pool is not mistaken for an outage.
    probe: tokio::sync::Mutex<Option<Conn>>,
    /// The connection that listens for notifications of other processes, opened on first use.
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

impl Database for Db {
    fn serves_one_process(&self) -> bool {
        Self::SERVES_ONE_PROCESS
    }
}

#[async_trait]
impl Backend for Db {
    async fn probe(&self) -> Result<(), Error> {
        let mut kept = self.probe.lock().await;
        // The connection is put back only after it has answered; after a failure or a cancelled
        // probe, the next probe opens another.
        let usable = |mut conn: Conn| (!PoolableConnection::is_broken(&mut conn)).then_some(conn);
        let (mut conn, anew) = match kept.take().and_then(usable) {
            Some(conn) => (conn, false),
            None => (self.connector.connect().await?, true),
        };
        refuse_replica(&mut conn).await?;
        statements::touch_instance(&mut conn, &self.instance).await?;
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

#[path = "statements/mod.rs"]
mod statements;

#[cfg(test)]
mod tests {
    mod over_tls;

    use super::*;
    use crate::backends::{database::contract, test_server};

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_fulfils_the_contract() {
        let database = test_server::PostgresDatabase::create().await;
        contract::suite(
            &Factory,
            &Section(serde_json::json!({"url": test_server::far(&database.url)})),
        )
        .await;
        database.drop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_is_safe_beside_the_version_before() {
        let server = test_server::PostgresDatabase::create().await;
        let section = Section(serde_json::json!({"url": test_server::far(&server.url)}));
        let database = Factory.build(&section, &contract::context()).await.unwrap();
        let execute = async |statements: String| server.within(&statements).await;
        contract::beside_the_version_before(&*database, execute).await;
        drop(database);
        server.drop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_understands_the_version_before() {
        let server = test_server::PostgresDatabase::create().await;
        let section = Section(serde_json::json!({"url": test_server::far(&server.url)}));
        let database = Factory.build(&section, &contract::context()).await.unwrap();
        let mut before =
            <Conn as diesel_async::AsyncConnection>::establish(&server.url).await.unwrap();
        before.batch_execute(contract::WRITTEN_BY_THE_VERSION_BEFORE).await.unwrap();
        contract::understands_the_version_before(&*database).await;
        drop((before, database));
        server.drop().await;
    }
}
