//! Moving everything that is kept from one database to another.

use async_trait::async_trait;

use super::rows::{ExecutionRow, HandOverRow, KeyRow, MovedEventRow, RunRow, WishRow};
use crate::error::Error;

/// Some rows on their way.
#[derive(Clone, Debug)]
pub struct Parcel(pub(super) Rows);

/// Rows of one kind. An execution never goes before its run, so that whoever finds it finds both.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    Runs(Vec<RunRow>),
    Executions(Vec<(ExecutionRow, HandOverRow, WishRow)>),
    Keys(Vec<KeyRow>),
    /// Those that are not delivered.
    Events(Vec<(i64, MovedEventRow)>),
}

impl Parcel {
    /// How many rows it holds.
    #[must_use]
    pub fn rows(&self) -> usize {
        match &self.0 {
            Rows::Runs(rows) => rows.len(),
            Rows::Executions(rows) => rows.len(),
            Rows::Keys(rows) => rows.len(),
            Rows::Events(rows) => rows.len(),
        }
    }

    pub(super) fn filled(rows: Rows) -> Option<Self> {
        let parcel = Self(rows);
        (parcel.rows() > 0).then_some(parcel)
    }
}

/// Accepted work that is not done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Events that are not delivered.
    pub events: i64,
    /// Executions that have not ended.
    pub executions: i64,
}

/// Takes rows out of one database and into another. Each step can be repeated.
#[async_trait]
pub trait Transfer {
    /// What is not done yet.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn unfinished(&self) -> Result<Unfinished, Error>;

    /// How many executions have not ended that are served by another backend than this one.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn open_elsewhere(&self, backend: &str) -> Result<i64, Error>;

    /// The next rows to move, which stay until they are forgotten; none when all have moved.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn next_parcel(&self, limit: i64) -> Result<Option<Parcel>, Error>;

    /// Stores the rows; those that are stored already stay as they are.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn take_in(&self, parcel: &Parcel) -> Result<(), Error>;

    /// Removes rows that another database has taken in.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn forget(&self, parcel: &Parcel) -> Result<(), Error>;
}
