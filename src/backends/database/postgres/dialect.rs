//! The dialect of `PostgreSQL`.

use std::ops::DerefMut;

use diesel_async::{AsyncPgConnection, RunQueryDsl};

pub(super) use super::Db;
use super::{
    super::{Acceptance, Admission, StatusChange, dialect::Dialect},
    accept::accept,
    change::change,
};
use crate::error::Error;

pub(super) type Conn = AsyncPgConnection;

/// The server's clock.
pub(super) const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

impl Dialect for Db {
    type Conn = Conn;

    const SERVES_ONE_PROCESS: bool = false;

    const SKIP_LOCKED_EXECUTIONS: &str = "FOR UPDATE OF executions SKIP LOCKED";

    /// Several processes compare these times, so they come from the server's clock.
    fn now_expression() -> String {
        NOW.to_owned()
    }

    async fn reader(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    async fn writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    async fn first_writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    async fn now(conn: &mut Conn) -> Result<i64, Error> {
        let now = diesel::dsl::sql::<diesel::sql_types::BigInt>(NOW);
        Ok(diesel::select(now).get_result(conn).await?)
    }

    async fn accept_all(conn: &mut Conn, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        accept(conn, batch).await
    }

    async fn change_all(conn: &mut Conn, changes: &[&StatusChange]) -> Result<Vec<String>, Error> {
        change(conn, changes).await
    }

    /// The server's answer to the commit guarantees it.
    async fn committed(&self, _conn: &mut Conn) -> Result<(), Error> {
        Ok(())
    }
}

macro_rules! transaction {
    ($conn:expr, $body:expr) => {
        diesel_async::AsyncConnection::transaction(&mut *$conn, $body).await
    };
}

macro_rules! locked {
    ($query:expr) => {
        $query.for_update()
    };
}

/// Replicas that claim at the same time take different rows.
macro_rules! skip_locked {
    ($query:expr) => {
        $query.for_update().skip_locked()
    };
}

pub(super) use {locked, skip_locked, transaction};
