//! Counts of the accepted work that waits.

use std::time::Duration;

use async_trait::async_trait;
use diesel::{prelude::*, sql_types::BigInt};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            Counts,
            dialect::Dialect,
            rows::{PENDING, from_micros_span, micros},
            schema::{executions, outbox, outbox_counts},
        },
        dialect::{Conn, Db},
    },
    ACCEPTED, count_up_to,
};
use crate::{
    error::Error,
    model::backlog::{Backlog, Count},
};

/// The row that all processes read. Times are those of the database's clock.
#[derive(Debug, Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = outbox_counts, treat_none_as_null = true)]
struct CountRow {
    id: i32,
    begun_at: i64,
    ended_at: i64,
    events: i64,
    lifecycle_events: i64,
    oldest_event_at: Option<i64>,
    dead_events: i64,
    executions: i64,
    oldest_execution_at: Option<i64>,
    dead_executions: i64,
}

impl CountRow {
    fn new(count: &Count, begun_at: i64, ended_at: i64) -> Self {
        let since = |oldest: Duration| begun_at.saturating_sub(micros(oldest));
        Self {
            id: 1,
            begun_at,
            ended_at,
            events: count.events.rows,
            lifecycle_events: count.lifecycle_events,
            oldest_event_at: count.events.oldest.map(since),
            dead_events: count.events.dead,
            executions: count.executions.rows,
            oldest_execution_at: count.executions.oldest.map(since),
            dead_executions: count.executions.dead,
        }
    }

    fn read(&self, now: i64) -> Count {
        let age = |at: i64| from_micros_span(self.begun_at - at);
        Count {
            events: Backlog {
                rows: self.events,
                oldest: self.oldest_event_at.map(age),
                dead: self.dead_events,
            },
            lifecycle_events: self.lifecycle_events,
            executions: Backlog {
                rows: self.executions,
                oldest: self.oldest_execution_at.map(age),
                dead: self.dead_executions,
            },
            begun_ago: from_micros_span(now - self.begun_at),
            ended_ago: from_micros_span(now - self.ended_at),
        }
    }
}

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    lifecycle: i64,
    #[diesel(sql_type = BigInt)]
    waiting: i64,
}

/// The waiting events and those of them that are about executions, of one moment. The bounds leave
/// room for `most` events of each kind beside those of the other.
async fn waiting_events(conn: &mut Conn, most: i64) -> Result<Waiting, Error> {
    let (lifecycle, all) = (most.saturating_mul(2) + 1, most.saturating_mul(3) + 2);
    let pending = format!("SELECT 1 FROM outbox WHERE state = '{PENDING}'");
    let statement = format!(
        "SELECT (SELECT count(*) FROM ({pending} AND lifecycle LIMIT {lifecycle}) AS own) \
             AS lifecycle, \
         (SELECT count(*) FROM ({pending} LIMIT {all}) AS found) AS waiting"
    );
    Ok(diesel::sql_query(statement).get_result(conn).await?)
}

async fn waiting_executions(conn: &mut Conn, now: i64, most: i64) -> Result<Backlog, Error> {
    let oldest: Option<i64> = executions::table
        .filter(executions::status.eq(ACCEPTED))
        .select(executions::created_at)
        .order(executions::created_at.asc())
        .first(conn)
        .await
        .optional()?;
    Ok(Backlog {
        rows: count_up_to(conn, "executions WHERE status = 'accepted'", most).await?,
        oldest: oldest.map(|at| from_micros_span(now - at)),
        dead: count_up_to(conn, "executions WHERE rejected_at IS NOT NULL", most).await?,
    })
}

async fn store(conn: &mut Conn, row: &CountRow) -> Result<(), Error> {
    // A process that was paused while it counted changes nothing.
    let older = outbox_counts::table.filter(outbox_counts::begun_at.lt(row.begun_at));
    if diesel::update(older).set(row).execute(conn).await? == 0 {
        diesel::insert_into(outbox_counts::table)
            .values(row)
            .on_conflict_do_nothing()
            .execute(conn)
            .await?;
    }
    Ok(())
}

#[async_trait]
impl Counts for Db {
    async fn count_waiting(&self, most: i64) -> Result<Count, Error> {
        let mut conn = self.reader().await?;
        let begun_at = Db::now(&mut conn).await?;
        let oldest: Option<i64> = outbox::table
            .filter(outbox::state.eq(PENDING))
            .select(outbox::created_at)
            .order(outbox::seq.asc())
            .first(&mut conn)
            .await
            .optional()?;
        let Waiting { lifecycle, waiting } = waiting_events(&mut conn, most).await?;
        let dead = count_up_to(&mut conn, "outbox WHERE state = 'dead'", most).await?;
        let executions = waiting_executions(&mut conn, begun_at, most).await?;
        drop(conn);
        let oldest = oldest.map(|at| from_micros_span(begun_at - at));
        let count = Count {
            events: Backlog { rows: waiting, oldest, dead },
            lifecycle_events: lifecycle,
            executions,
            begun_ago: Duration::ZERO,
            ended_ago: Duration::ZERO,
        };
        if !Db::SERVES_ONE_PROCESS {
            let mut conn = self.writer().await?;
            let ended_at = Db::now(&mut conn).await?;
            store(&mut conn, &CountRow::new(&count, begun_at, ended_at)).await?;
        }
        Ok(count)
    }

    async fn counted(&self) -> Result<Option<Count>, Error> {
        if Db::SERVES_ONE_PROCESS {
            return Ok(None);
        }
        let mut conn = self.reader().await?;
        let row: Option<CountRow> =
            outbox_counts::table.select(CountRow::as_select()).first(&mut conn).await.optional()?;
        let Some(row) = row else { return Ok(None) };
        let now = Db::now(&mut conn).await?;
        Ok(Some(row.read(now)))
    }
}
