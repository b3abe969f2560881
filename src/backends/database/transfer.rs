//! Moves all stored rows from one database to another.

use async_trait::async_trait;

use super::rows::{ExecutionRow, HandOverRow, KeyRow, OutboxRow, RunRow, WishRow};
use crate::error::Error;

/// A batch of rows to move.
#[derive(Clone, Debug)]
pub struct Parcel(pub(super) Rows);

/// Rows of one kind. Runs move before their executions, so that a reader who finds an execution
/// also finds its run.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    Runs(Vec<RunRow>),
    Executions(Vec<(ExecutionRow, HandOverRow, WishRow)>),
    Keys(Vec<KeyRow>),
    /// Undelivered events.
    Events(Vec<(i64, OutboxRow)>),
}

impl Parcel {
    /// The number of rows.
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

/// Unfinished accepted work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Undelivered events.
    pub events: i64,
    /// Executions that have not ended.
    pub executions: i64,
}

/// Moves rows from one database into another. Each step is idempotent.
#[async_trait]
pub trait Transfer {
    /// The unfinished work.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn unfinished(&self) -> Result<Unfinished, Error>;

    /// The number of unfinished executions of backends other than this one.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn open_elsewhere(&self, backend: &str) -> Result<i64, Error>;

    /// The next rows to move, which stay until they are removed; none when all have moved.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn next_parcel(&self, limit: i64) -> Result<Option<Parcel>, Error>;

    /// Stores the rows; rows already stored are left unchanged.
    ///
    /// # Errors
    /// When the database cannot be asked.
    async fn take_in(&self, parcel: &Parcel) -> Result<(), Error>;

    /// Removes rows that the other database has stored.
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

    /// Fails when a new column of a table is not moved.
    #[test]
    fn a_row_moves_with_every_column() {
        let row = (ExecutionRow::as_select(), HandOverRow::as_select(), WishRow::as_select());
        let moved = columns(&executions::table.select(row));
        assert_eq!(moved, columns(&executions::table.select(executions::all_columns)));
        let moved = columns(&runs::table.select(RunRow::as_select()));
        assert_eq!(moved, columns(&runs::table.select(runs::all_columns)));
        let moved = columns(&idempotency_keys::table.select(KeyRow::as_select()));
        assert_eq!(moved, columns(&idempotency_keys::table.select(idempotency_keys::all_columns)));
        // The other database assigns new sequence numbers.
        let moved = columns(&outbox::table.select((outbox::seq, OutboxRow::as_select())));
        assert_eq!(moved, columns(&outbox::table.select(outbox::all_columns)));
        assert!(moved.len() > 10, "{moved:?}");
    }
}
