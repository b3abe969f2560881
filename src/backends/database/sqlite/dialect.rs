//! The dialect of `SQLite`.

use std::{
    ops::{Deref, DerefMut},
    sync::LazyLock,
    time::Instant,
};

use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use tokio::sync::OwnedMutexGuard;

pub(super) use super::Db;
use super::{
    super::{Acceptance, Admission, StatusChange, dialect::Dialect},
    Connector,
    accept::accept,
    change::change,
};
use crate::{
    backends::pool::Checkout,
    error::{Error, RetryClass},
    model::time,
};

pub(super) type Conn = SyncConnectionWrapper<diesel::SqliteConnection>;

impl Dialect for Db {
    type Conn = Conn;

    const SERVES_ONE_PROCESS: bool = true;

    const SKIP_LOCKED_EXECUTIONS: &str = "";

    fn now_expression() -> String {
        micros().to_string()
    }

    async fn reader(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        // Readers are closed too, or the old file would stay open.
        self.check_name()?;
        self.pool.get().await
    }

    /// For background work: only one background writer at a time queues for its turn.
    async fn writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        let place = self.wait(&self.lock.background).await?;
        Ok(Writer { _place: Some(place), ..self.take_turn().await? })
    }

    /// For clients that wait for acceptance: they wait for one background writer at most.
    async fn first_writer(&self) -> Result<impl DerefMut<Target = Conn>, Error> {
        self.take_turn().await
    }

    /// Only one process writes the file, so its clock serves as the database's.
    async fn now(_conn: &mut Conn) -> Result<i64, Error> {
        Ok(micros())
    }

    async fn accept_all(conn: &mut Conn, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        accept(conn, batch, micros()).await
    }

    async fn change_all(conn: &mut Conn, changes: &[&StatusChange]) -> Result<Vec<String>, Error> {
        change(conn, changes, micros()).await
    }

    /// A commit into a file that was deleted meanwhile is lost, unless the file comes back.
    async fn committed(&self, conn: &mut Conn) -> Result<(), Error> {
        let kept = match self.check_name() {
            Ok(shrunk_to) => self.check_size(conn, shrunk_to).await,
            Err(error) => Err(error),
        };
        kept.map_err(|error| error.with_retry(RetryClass::MaybeSent))
    }
}

impl Db {
    async fn take_turn(&self) -> Result<Writer, Error> {
        let turn = self.wait(&self.lock.turn).await?;
        let shrunk_to = self.check_name()?;
        let mut conn = self.pool.get().await?;
        self.check_size(&mut conn, shrunk_to).await?;
        Ok(Writer { conn, _turn: turn, _place: None })
    }
}

/// Starts from the wall clock and continues with the monotonic clock, so that setting the clock
/// neither shortens nor extends a claim or a pause.
fn micros() -> i64 {
    static BEGAN: LazyLock<(i64, Instant)> =
        LazyLock::new(|| (time::now().as_microsecond(), Instant::now()));
    let since = i64::try_from(BEGAN.1.elapsed().as_micros()).unwrap_or(i64::MAX);
    BEGAN.0.saturating_add(since)
}

/// A pooled connection that holds the turn to write.
struct Writer {
    // Fields are dropped in this order, so an open transaction ends before the next turn begins.
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

/// Writers take the write lock at once: upgrading a read lock later could deadlock.
macro_rules! transaction {
    ($conn:expr, $body:expr) => {
        (*$conn).immediate_transaction($body).await
    };
}

/// No row locks are needed: the single writer has locked the whole file.
macro_rules! skip_locked {
    ($query:expr) => {
        $query
    };
}

/// The writer has locked the whole file.
macro_rules! locked {
    ($query:expr) => {
        $query
    };
}

pub(super) use {locked, skip_locked, transaction};
