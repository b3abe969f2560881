//! The dialect of `PostgreSQL`.

use std::ops::DerefMut;

use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

pub(super) use super::Db;
use super::{
    super::{NewEvent, dialect::Dialect},
    insert_all::InsertAll,
};
use crate::error::Error;

pub(super) type Conn = AsyncPgConnection;

impl Dialect for Db {
    type Conn = Conn;

    const SERVES_ONE_PROCESS: bool = false;

    async fn reader(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    async fn writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    async fn first_writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.pool.get().await
    }

    /// Several processes compare these times, so they come from the server's clock.
    async fn now(conn: &mut Conn) -> Result<i64, Error> {
        let now = "(extract(epoch from clock_timestamp()) * 1000000)::bigint";
        let now = diesel::dsl::sql::<diesel::sql_types::BigInt>(now);
        Ok(diesel::select(now).get_result(conn).await?)
    }

    /// The statement is a transaction by itself: one round trip instead of three, and no
    /// transaction stays open while this process is paused.
    async fn insert_all(conn: &mut Conn, events: &[&NewEvent]) -> Result<bool, Error> {
        match InsertAll::new(events).execute(conn).await {
            Ok(_) => Ok(true),
            Err(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(false),
            Err(error) => Err(error.into()),
        }
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
