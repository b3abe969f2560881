//! Rows that move to another database.

use async_trait::async_trait;
use diesel::{dsl::count_star, prelude::*};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            Parcel, Transfer, Unfinished,
            dialect::Dialect,
            rows::{ExecutionRow, HandOverRow, KeyRow, OutboxRow, RunRow, WishRow},
            schema::{executions, idempotency_keys, outbox, runs},
            transfer::Rows,
        },
        dialect::{Conn, Db, transaction},
    },
    ACCEPTED, RUNNING, count_up_to,
};
use crate::error::{Error, ErrorKind};

/// Stores a row unless the same row is already stored. A different row with the same key must be an
/// error, because the row is then removed from its source.
macro_rules! take_in {
    ($conn:ident, $table:expr, $row:expr, $what:expr, $stored:expr, $own:expr) => {
        let insert = diesel::insert_into($table).values($row.clone());
        if insert.on_conflict_do_nothing().execute($conn).await? == 0 {
            let stored: Option<String> = $stored.first($conn).await.optional()?;
            if stored.as_deref() != Some($own) {
                return Err(taken(&$what).into());
            }
        }
    };
}

fn taken(what: &str) -> Error {
    let message = format!(
        "the configured database has another {what}; nothing of these rows was moved: end or remove \
         one of the two first"
    );
    Error::new(ErrorKind::Conflict, message)
}

/// `PostgreSQL` assigns sequence numbers in order of insertion, which keeps the order.
async fn take_in(conn: &mut Conn, rows: &Rows) -> Result<(), Error> {
    match rows {
        Rows::Runs(rows) => {
            for row in rows {
                let stored = runs::table.find(&row.id).select(runs::request_id);
                let what = format!("run of the execution {:?}", row.id);
                take_in!(conn, runs::table, row, what, stored, &row.request_id);
            }
        }
        Rows::Executions(rows) => {
            for row in rows {
                let (id, own) = (row.0.id(), row.0.request_id());
                let stored = executions::table.find(id).select(executions::request_id);
                let what = format!("execution with the id {id:?}");
                take_in!(conn, executions::table, row, what, stored, own);
            }
        }
        Rows::Keys(rows) => {
            for row in rows {
                let stored = idempotency_keys::table.find(row.primary_key());
                let stored = stored.select(idempotency_keys::body_hash);
                let what = format!("request with the Idempotency-Key {:?}", row.primary_key().1);
                take_in!(conn, idempotency_keys::table, row, what, stored, &row.body_hash);
            }
        }
        Rows::Events(rows) => {
            for (_, row) in rows {
                let place = outbox::source.eq(&row.source).and(outbox::event_id.eq(&row.event_id));
                let stored = outbox::table.filter(place).select(outbox::content_hash);
                let what = format!("event {:?} of the source {:?}", row.event_id, row.source);
                take_in!(conn, outbox::table, row, what, stored, &row.content_hash);
            }
        }
    }
    Ok(())
}

async fn forget(conn: &mut Conn, rows: &Rows) -> Result<(), Error> {
    match rows {
        Rows::Runs(rows) => {
            let ids = rows.iter().map(|row| &row.id);
            diesel::delete(runs::table.filter(runs::id.eq_any(ids))).execute(conn).await?;
        }
        Rows::Executions(rows) => {
            let ids = rows.iter().map(|(row, ..)| row.id());
            let moved = executions::table.filter(executions::id.eq_any(ids));
            diesel::delete(moved).execute(conn).await?;
        }
        Rows::Keys(rows) => {
            for row in rows {
                let moved = idempotency_keys::table.find(row.primary_key());
                diesel::delete(moved).execute(conn).await?;
            }
        }
        Rows::Events(rows) => {
            let seqs = rows.iter().map(|(seq, _)| seq);
            diesel::delete(outbox::table.filter(outbox::seq.eq_any(seqs))).execute(conn).await?;
        }
    }
    Ok(())
}

async fn next_rows(conn: &mut Conn, limit: i64) -> Result<Option<Parcel>, Error> {
    let rows = runs::table.select(RunRow::as_select()).limit(limit).load(conn).await?;
    if let Some(parcel) = Parcel::filled(Rows::Runs(rows)) {
        return Ok(Some(parcel));
    }
    let columns = (ExecutionRow::as_select(), HandOverRow::as_select(), WishRow::as_select());
    let rows = executions::table.select(columns).limit(limit).load(conn).await?;
    if let Some(parcel) = Parcel::filled(Rows::Executions(rows)) {
        return Ok(Some(parcel));
    }
    let rows = idempotency_keys::table.select(KeyRow::as_select()).limit(limit).load(conn).await?;
    if let Some(parcel) = Parcel::filled(Rows::Keys(rows)) {
        return Ok(Some(parcel));
    }
    let rows = outbox::table
        .filter(outbox::delivered_at.is_null())
        .select((outbox::seq, OutboxRow::as_select()))
        .order(outbox::seq.asc())
        .limit(limit)
        .load(conn)
        .await?;
    Ok(Parcel::filled(Rows::Events(rows)))
}

#[async_trait]
impl Transfer for Db {
    async fn unfinished(&self) -> Result<Unfinished, Error> {
        unfinished(&mut *self.reader().await?).await
    }

    async fn open_elsewhere(&self, backend: &str) -> Result<i64, Error> {
        let mut conn = self.reader().await?;
        let open = executions::status.eq_any([ACCEPTED, RUNNING]);
        Ok(executions::table
            .filter(open.and(executions::backend.ne(backend)))
            .select(count_star())
            .first(&mut conn)
            .await?)
    }

    async fn next_parcel(&self, limit: i64) -> Result<Option<Parcel>, Error> {
        let mut conn = self.reader().await?;
        next_rows(&mut conn, limit).await
    }

    async fn take_in(&self, parcel: &Parcel) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let taken: Result<(), Error> =
            transaction!(conn, async |conn| take_in(conn, &parcel.0).await);
        taken
    }

    async fn forget(&self, parcel: &Parcel) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let forgotten: Result<(), Error> =
            transaction!(conn, async |conn| forget(conn, &parcel.0).await);
        forgotten
    }
}

pub(in super::super) async fn unfinished(conn: &mut Conn) -> Result<Unfinished, Error> {
    let most = i64::MAX - 1;
    let open = "executions WHERE status IN ('accepted', 'running')";
    Ok(Unfinished {
        events: count_up_to(conn, "outbox WHERE state = 'pending'", most).await?,
        executions: count_up_to(conn, open, most).await?,
    })
}
