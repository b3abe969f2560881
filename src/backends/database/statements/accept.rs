//! Accepted work: records, events and idempotency keys.

use async_trait::async_trait;
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        Accept, Acceptance, Admission, NewEvent, dialect::Dialect, rows::OutboxRow, schema::outbox,
    },
    dialect::{Conn, Db},
};
use crate::error::Error;

/// Stores events, except those already stored.
pub(super) async fn announce(conn: &mut Conn, events: &[NewEvent], now: i64) -> Result<(), Error> {
    for event in events {
        diesel::insert_into(outbox::table)
            .values(OutboxRow::new(event, now))
            .on_conflict_do_nothing()
            .execute(conn)
            .await?;
    }
    Ok(())
}

#[async_trait]
impl Accept for Db {
    async fn accept(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        let mut conn = self.first_writer().await?;
        let accepted = Db::accept_all(&mut conn, batch).await?;
        self.committed(&mut conn).await?;
        Ok(accepted)
    }

    async fn forget_keys(&self, limit: i64) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let old = format!(
            "DELETE FROM idempotency_keys WHERE expires_at <= {now} \
             AND (scope, idempotency_key) IN (\
                 SELECT scope, idempotency_key FROM idempotency_keys \
                 WHERE expires_at <= {now} ORDER BY expires_at LIMIT {limit})"
        );
        Ok(diesel::sql_query(old).execute(&mut conn).await?)
    }
}
