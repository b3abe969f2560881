//! The interface that each database provides to the statements, which are written once and compiled
//! for each database.
//!
//! Each database has a module `dialect`, from which its statements import
//!
//! - `Db`, which implements [`Dialect`], and `Conn`, the type of its connections;
//! - `transaction!(conn, async |conn| …)`: commits the work of the closure, unless it fails;
//! - `locked!(query)`: locks the rows it finds until the transaction ends;
//! - `skip_locked!(query)`: the same, skipping rows that another transaction has locked.
//!
//! The last three are macros, because the types of queries differ from database to database.
//!
//! What happens for every request is written for each database, because their costs differ: for
//! `PostgreSQL` it is the round trip, for `SQLite` the move to a thread that may block.

use std::ops::DerefMut;

use super::{Acceptance, Admission, StatusChange};
use crate::error::Error;

/// A database as the statements see it.
pub(super) trait Dialect: Sized {
    /// One connection.
    type Conn;

    /// True when no other process can use the database, so any claim of another process was left by
    /// a process that died.
    const SERVES_ONE_PROCESS: bool;

    /// A connection to read with.
    fn reader(&self) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// A connection to write with, for work in the background.
    fn writer(&self) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// A connection to write with, for clients that wait for acceptance. Where writers take turns,
    /// these come before background work.
    fn first_writer(
        &self,
    ) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// Locks the rows of `executions` that a query finds until the transaction ends, and leaves out
    /// those that another transaction has locked.
    const SKIP_LOCKED_EXECUTIONS: &str;

    /// The time that processes compare, as an expression of SQL.
    fn now_expression() -> String;

    /// The time that processes compare, in microseconds since the epoch.
    fn now(conn: &mut Self::Conn) -> impl Future<Output = Result<i64, Error>>;

    /// Stores all admissions in one transaction, as [`Accept::accept`](super::Accept::accept) says.
    fn accept_all(
        conn: &mut Self::Conn,
        batch: &[&Admission],
    ) -> impl Future<Output = Result<Vec<Acceptance>, Error>>;

    /// Makes changes in one transaction, as
    /// [`ExecutionStore::change`](super::ExecutionStore::change) says. Returns the ids of the
    /// changed executions.
    fn change_all(
        conn: &mut Self::Conn,
        changes: &[&StatusChange],
    ) -> impl Future<Output = Result<Vec<String>, Error>>;

    /// Makes sure that the commit is durable.
    fn committed(&self, conn: &mut Self::Conn) -> impl Future<Output = Result<(), Error>>;
}
