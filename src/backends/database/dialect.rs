//! What a database provides to the statements, which are written once and compiled for each.
//!
//! Beside each database stands a module `dialect`, from which its statements import
//!
//! - `Db`, which implements [`Dialect`], and `Conn`, the type of its connections;
//! - `transaction!(conn, async |conn| …)`: commits what the closure does, unless it fails;
//! - `locked!(query)`: keeps the rows it finds as they are until the transaction ends;
//! - `skip_locked!(query)`: the same, without those that another transaction keeps.
//!
//! The last three are macros, because the types of queries differ from database to database.

use std::ops::DerefMut;

use super::NewEvent;
use crate::error::Error;

/// A database as the statements see it.
pub(super) trait Dialect: Sized {
    /// One connection.
    type Conn;

    /// Whether no other process can use the database: whatever another one has claimed, it died
    /// holding.
    const SERVES_ONE_PROCESS: bool;

    /// A connection to read with.
    fn reader(&self) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// A connection to write with, for work in the background.
    fn writer(&self) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// A connection to write with, for clients that wait to have their work accepted: before the
    /// work in the background, where writers take turns.
    fn first_writer(
        &self,
    ) -> impl Future<Output = Result<impl DerefMut<Target = Self::Conn>, Error>>;

    /// The time that processes compare, in microseconds since the epoch.
    fn now(conn: &mut Self::Conn) -> impl Future<Output = Result<i64, Error>>;

    /// Stores all events in one transaction if none of them is known, and nothing otherwise. False
    /// then.
    fn insert_all(
        conn: &mut Self::Conn,
        events: &[&NewEvent],
    ) -> impl Future<Output = Result<bool, Error>>;

    /// Makes sure that what was committed is kept.
    fn committed(&self, conn: &mut Self::Conn) -> impl Future<Output = Result<(), Error>>;
}
