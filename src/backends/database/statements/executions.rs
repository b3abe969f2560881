//! The records of executions.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            ExecutionStore, StatusChange,
            dialect::Dialect,
            rows::{ExecutionRow, OpenRow, OutcomeRow, micros},
            schema::{executions, runs},
        },
        dialect::{Conn, Db, transaction},
    },
    ACCEPTED, RUNNING,
};
use crate::{
    error::Error,
    model::executions::{Execution, ListFilter, OpenExecution, Outcome},
};

/// Changes the status of an execution that has one of those in `before`.
pub(super) async fn change_status(
    conn: &mut Conn,
    id: &str,
    before: &[&str],
    outcome: &Outcome,
    now: i64,
) -> Result<bool, Error> {
    let row = executions::table.find(id).filter(executions::status.eq_any(before));
    let changed = diesel::update(row).set(OutcomeRow::new(outcome, now)).execute(conn).await?;
    Ok(changed == 1)
}

#[async_trait]
impl ExecutionStore for Db {
    async fn execution(&self, id: &str) -> Result<Option<Execution>, Error> {
        let mut conn = self.reader().await?;
        let row: Option<ExecutionRow> = executions::table
            .find(id)
            .select(ExecutionRow::as_select())
            .first(&mut conn)
            .await
            .optional()?;
        Ok(row.map(ExecutionRow::show))
    }

    async fn executions(&self, filter: &ListFilter) -> Result<Vec<Execution>, Error> {
        let mut conn = self.reader().await?;
        let mut query = executions::table
            .select(ExecutionRow::as_select())
            .order((executions::created_at.desc(), executions::id.desc()))
            .limit(filter.limit)
            .into_boxed();
        if let Some(status) = filter.status {
            query = query.filter(executions::status.eq(status.as_str()));
        }
        if let Some(workflow) = &filter.workflow {
            query = query.filter(executions::workflow.eq(workflow));
        }
        if let Some(place) = &filter.before {
            let at = place.created_at.as_microsecond();
            query = query.filter(
                executions::created_at
                    .lt(at)
                    .or(executions::created_at.eq(at).and(executions::id.lt(&place.id))),
            );
        }
        let rows: Vec<ExecutionRow> = query.load(&mut conn).await?;
        Ok(rows.into_iter().map(ExecutionRow::show).collect())
    }

    async fn change(&self, changes: &[&StatusChange]) -> Result<Vec<bool>, Error> {
        let mut conn = self.writer().await?;
        let made = Db::change_all(&mut conn, changes).await?;
        let made: HashSet<String> = made.into_iter().collect();
        Ok(changes.iter().map(|change| made.contains(&change.id)).collect())
    }

    async fn confirm(&self, ids: &[String]) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let confirmed_at = Db::now(&mut conn).await?;
        let running = executions::id.eq_any(ids).and(executions::status.eq(RUNNING));
        Ok(diesel::update(executions::table.filter(running))
            .set(executions::confirmed_at.eq(confirmed_at))
            .execute(&mut conn)
            .await?)
    }

    async fn unconfirmed(&self, backend: &str, limit: i64) -> Result<Vec<OpenExecution>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<OpenRow> = executions::table
            .filter(executions::status.eq(RUNNING).and(executions::backend.eq(backend)))
            .select(OpenRow::as_select())
            .order(executions::confirmed_at.asc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(OpenRow::read).collect())
    }

    async fn open_among(&self, ids: &[String]) -> Result<Vec<OpenExecution>, Error> {
        let mut conn = self.reader().await?;
        let open = executions::status.eq_any([ACCEPTED, RUNNING]);
        let rows: Vec<OpenRow> = executions::table
            .filter(executions::id.eq_any(ids).and(open))
            .select(OpenRow::as_select())
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(OpenRow::read).collect())
    }

    async fn remove_ended(&self, older_than: Duration, limit: i64) -> Result<usize, Error> {
        let mut conn = self.reader().await?;
        let before = Db::now(&mut conn).await?.saturating_sub(micros(older_than));
        let old: Vec<String> = executions::table
            .filter(executions::finished_at.le(before).and(executions::rejected_at.is_null()))
            .select(executions::id)
            .order(executions::finished_at.asc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        drop(conn);
        if old.is_empty() {
            return Ok(0);
        }
        let mut conn = self.writer().await?;
        let removed: Result<usize, Error> = transaction!(conn, async |conn| {
            // If this process was paused, another may have removed the execution, and its id may
            // belong to a new one.
            let still = executions::id
                .eq_any(&old)
                .and(executions::finished_at.le(before).and(executions::rejected_at.is_null()));
            let removed: Vec<String> = diesel::delete(executions::table.filter(still))
                .returning(executions::id)
                .get_results(conn)
                .await?;
            diesel::delete(runs::table.filter(runs::id.eq_any(&removed))).execute(conn).await?;
            Ok(removed.len())
        });
        removed
    }
}
