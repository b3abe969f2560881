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

use std::ops::DerefMut;

use super::NewEvent;
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

    /// The time that processes compare, in microseconds since the epoch.
    fn now(conn: &mut Self::Conn) -> impl Future<Output = Result<i64, Error>>;

    /// Stores all events in one transaction if none of them is known. Otherwise stores nothing and
    /// returns false.
    fn insert_all(
        conn: &mut Self::Conn,
        events: &[&NewEvent],
    ) -> impl Future<Output = Result<bool, Error>>;

    /// Makes sure that the commit is durable.
    fn committed(&self, conn: &mut Self::Conn) -> impl Future<Output = Result<(), Error>>;
}
