//! Events that the broker refused for good.

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        DeadLetter, DeadLetters,
        errors::query_error,
        rows::{DEAD, DeadRow, PENDING},
        schema::outbox,
    },
    Db,
};
use crate::error::Error;

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
            .await
            .map_err(query_error)?;
        rows.into_iter().map(DeadRow::read).collect()
    }

    async fn redrive(&self, seq: i64) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        diesel::update(outbox::table.find(seq).filter(outbox::state.eq(DEAD)))
            .set((outbox::state.eq(PENDING), outbox::refusals.eq(0)))
            .execute(&mut conn)
            .await
            .map(|changed| changed == 1)
            .map_err(query_error)
    }

    async fn discard(&self, seq: i64) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        diesel::delete(outbox::table.find(seq).filter(outbox::state.eq(DEAD)))
            .execute(&mut conn)
            .await
            .map(|removed| removed == 1)
            .map_err(query_error)
    }
}
