//! Accepted work that was refused for good.

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        DeadLetter, DeadLetters, NewEvent, RejectedExecution,
        dialect::Dialect,
        rows::{DEAD, DeadRow, ExecutionRow, HandOverRow, PENDING},
        schema::{executions, outbox},
    },
    dialect::{Db, transaction},
};
use super::accept::announce;
use crate::{error::Error, model::executions::Status};

#[async_trait]
impl DeadLetters for Db {
    async fn dead_letters(
        &self,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<DeadLetter>, Error> {
        let mut conn = self.reader().await?;
        let before = before.unwrap_or(i64::MAX);
        let rows: Vec<DeadRow> = outbox::table
            .filter(outbox::state.eq(DEAD).and(outbox::seq.lt(before)))
            .select(DeadRow::as_select())
            .order(outbox::seq.desc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(DeadRow::read).collect())
    }

    async fn redrive(&self, seq: i64) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let changed = diesel::update(outbox::table.find(seq).filter(outbox::state.eq(DEAD)))
            .set((outbox::state.eq(PENDING), outbox::refusals.eq(0)))
            .execute(&mut conn)
            .await?;
        Ok(changed == 1)
    }

    async fn discard(&self, seq: i64) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let removed = diesel::delete(outbox::table.find(seq).filter(outbox::state.eq(DEAD)))
            .execute(&mut conn)
            .await?;
        Ok(removed == 1)
    }

    async fn rejected_executions(
        &self,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<RejectedExecution>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<(ExecutionRow, HandOverRow)> = executions::table
            .filter(executions::rejected_at.is_not_null())
            .filter(executions::id.gt(after.unwrap_or_default()))
            .select((ExecutionRow::as_select(), HandOverRow::as_select()))
            .order(executions::id.asc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(|(row, hand_over)| hand_over.rejected(row)).collect())
    }

    async fn redrive_execution(
        &self,
        id: &str,
        redrives: i32,
        announcement: &NewEvent,
    ) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let done: Result<bool, Error> = transaction!(conn, async |conn| {
            let rejected = executions::rejected_at.is_not_null();
            let rejected = rejected.and(executions::redrives.eq(redrives));
            let changed = diesel::update(executions::table.find(id).filter(rejected))
                .set((
                    executions::status.eq(Status::Accepted.as_str()),
                    executions::error.eq(None::<String>),
                    executions::finished_at.eq(None::<i64>),
                    executions::rejected_at.eq(None::<i64>),
                    executions::tried_at.eq(None::<i64>),
                    executions::claimed_until.eq(0),
                    executions::refusals.eq(0),
                    executions::redrives.eq(redrives + 1),
                ))
                .execute(conn)
                .await?;
            if changed == 1 {
                announce(conn, std::slice::from_ref(announcement), now).await?;
            }
            Ok(changed == 1)
        });
        done
    }

    async fn discard_execution(&self, id: &str) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let rejected = executions::rejected_at.is_not_null();
        let changed = diesel::update(executions::table.find(id).filter(rejected))
            .set(executions::rejected_at.eq(None::<i64>))
            .execute(&mut conn)
            .await?;
        Ok(changed == 1)
    }
}
