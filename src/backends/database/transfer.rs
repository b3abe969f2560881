//! Moving everything that is kept from one database to another.

use async_trait::async_trait;

use super::rows::{ExecutionRow, HandOverRow, KeyRow, OutboxRow, RunRow, WishRow};
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
    Events(Vec<(i64, OutboxRow)>),
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

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use std::collections::BTreeSet;

    use diesel::{debug_query, prelude::*, query_builder::QueryFragment, sqlite::Sqlite};

    use super::*;
    use crate::backends::database::schema::{executions, idempotency_keys, outbox, runs};

    fn columns(query: &impl QueryFragment<Sqlite>) -> BTreeSet<String> {
        let text = debug_query::<Sqlite, _>(query).to_string();
        let (columns, _) = text.split_once(" FROM ").expect("a selection");
        columns
            .split('.')
            .skip(1)
            .filter_map(|column| Some(column.split('`').nth(1)?.into()))
            .collect()
    }

    /// A column that is added to a table is read before a row moves, or this fails.
    #[test]
    fn a_row_moves_with_every_column() {
        let row = (ExecutionRow::as_select(), HandOverRow::as_select(), WishRow::as_select());
        let moved = columns(&executions::table.select(row));
        assert_eq!(moved, columns(&executions::table.select(executions::all_columns)));
        let moved = columns(&runs::table.select(RunRow::as_select()));
        assert_eq!(moved, columns(&runs::table.select(runs::all_columns)));
        let moved = columns(&idempotency_keys::table.select(KeyRow::as_select()));
        assert_eq!(moved, columns(&idempotency_keys::table.select(idempotency_keys::all_columns)));
        // The other database numbers events anew.
        let moved = columns(&outbox::table.select((outbox::seq, OutboxRow::as_select())));
        assert_eq!(moved, columns(&outbox::table.select(outbox::all_columns)));
        assert!(moved.len() > 10, "{moved:?}");
    }
}
