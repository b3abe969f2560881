//! Accepted executions that wait to be started.

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            ClaimedExecutions, Ended, ExecutionQueue, NewEvent,
            dialect::Dialect,
            rows::{ExecutionRow, HandOverRow, json, micros, parse},
            schema::executions,
        },
        dialect::{Conn, Db, locked, skip_locked, transaction},
    },
    ACCEPTED, RUNNING,
    accept::announce,
    count_up_to,
    executions::change_status,
};
use crate::{
    error::Error,
    model::{
        backlog::Backlog,
        executions::{Ending, Outcome},
    },
};

async fn claim(
    conn: &mut Conn,
    backend: &str,
    owner: &str,
    (now, lease): (i64, i64),
    limit: i64,
) -> Result<Vec<(ExecutionRow, HandOverRow)>, Error> {
    let expired = executions::claimed_until.le(now);
    // In a single-process database, claims of another process were left by one that died.
    let left = executions::owner
        .ne(owner)
        .and(Db::SERVES_ONE_PROCESS.into_sql::<diesel::sql_types::Bool>());
    let query = executions::table
        .filter(executions::status.eq(ACCEPTED).and(executions::backend.eq(backend)))
        .filter(expired.or(left))
        .select(executions::id)
        .order(executions::created_at.asc())
        .limit(limit);
    let ids: Vec<String> = skip_locked!(query).load(conn).await?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    diesel::update(executions::table.filter(executions::id.eq_any(&ids)))
        .set((
            executions::owner.eq(owner),
            executions::claimed_until.eq(now.saturating_add(lease)),
            executions::fence.eq(executions::fence + 1),
        ))
        .execute(conn)
        .await?;
    let untried = executions::id.eq_any(&ids).and(executions::tried_at.is_null());
    diesel::update(executions::table.filter(untried))
        .set(executions::tried_at.eq(now))
        .execute(conn)
        .await?;
    let claimed = executions::table
        .filter(executions::id.eq_any(&ids))
        .select((ExecutionRow::as_select(), HandOverRow::as_select()))
        .order(executions::created_at.asc())
        .load(conn)
        .await?;
    Ok(claimed)
}

#[async_trait]
impl ExecutionQueue for Db {
    async fn claim_executions(
        &self,
        backend: &str,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<ClaimedExecutions, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let lease = micros(lease);
        let claimed: Result<Vec<(ExecutionRow, HandOverRow)>, Error> =
            transaction!(conn, async |conn| claim(conn, backend, owner, (now, lease), limit).await);
        let mut executions = ClaimedExecutions::default();
        for (row, hand_over) in claimed? {
            match hand_over.claimed(row, now) {
                Ok(claimed) => executions.readable.push(claimed),
                Err(unreadable) => executions.unreadable.push(*unreadable),
            }
        }
        Ok(executions)
    }

    async fn release_execution(&self, id: &str, fence: i64, untried: bool) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let claimed = executions::status.eq(ACCEPTED).and(executions::fence.eq(fence));
        let forget_try = untried.then_some(executions::tried_at.eq(None::<i64>));
        diesel::update(executions::table.find(id).filter(claimed))
            .set((executions::claimed_until.eq(0), forget_try))
            .execute(&mut conn)
            .await?;
        Ok(())
    }

    async fn count_refusal(
        &self,
        id: &str,
        fence: i64,
        pause: Duration,
    ) -> Result<Option<i32>, Error> {
        let mut conn = self.writer().await?;
        let until = Db::now(&mut conn).await?.saturating_add(micros(pause));
        let claimed = executions::status.eq(ACCEPTED).and(executions::fence.eq(fence));
        Ok(diesel::update(executions::table.find(id).filter(claimed))
            .set((
                executions::refusals.eq(executions::refusals + 1),
                executions::claimed_until.eq(until),
            ))
            .returning(executions::refusals)
            .get_result(&mut conn)
            .await
            .optional()?)
    }

    async fn reject_execution(
        &self,
        id: &str,
        fence: i64,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let rejected: Result<bool, Error> = transaction!(conn, async |conn| {
            let claimed = executions::status.eq(ACCEPTED).and(executions::fence.eq(fence));
            let marked = diesel::update(executions::table.find(id).filter(claimed))
                .set(executions::rejected_at.eq(now))
                .execute(conn)
                .await?;
            if marked == 1 {
                change_status(conn, id, &[ACCEPTED], outcome, now).await?;
                announce(conn, std::slice::from_ref(announcement), now).await?;
            }
            Ok(marked == 1)
        });
        rejected
    }

    async fn end_accepted(
        &self,
        id: &str,
        ending: &Ending,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<Ended, Error> {
        let mut conn = self.first_writer().await?;
        let now = Db::now(&mut conn).await?;
        let wish = json(ending)?;
        let ended: Result<Ended, Error> = transaction!(conn, async |conn| {
            let accepted = executions::table.find(id).filter(executions::status.eq(ACCEPTED));
            // Blocks claims until the outcome is decided.
            let query = accepted.select(executions::tried_at);
            let found: Option<Option<i64>> = locked!(query).first(conn).await.optional()?;
            match found {
                None => Ok(Ended::NotAccepted),
                Some(None) => {
                    change_status(conn, id, &[ACCEPTED], outcome, now).await?;
                    announce(conn, std::slice::from_ref(announcement), now).await?;
                    Ok(Ended::Now)
                }
                Some(Some(_tried)) => {
                    diesel::update(executions::table.find(id))
                        .set(executions::ending.eq(wish))
                        .execute(conn)
                        .await?;
                    Ok(Ended::Later)
                }
            }
        });
        ended
    }

    async fn wished_endings(
        &self,
        backend: &str,
        limit: i64,
    ) -> Result<Vec<(String, Result<Ending, Error>)>, Error> {
        let mut conn = self.reader().await?;
        let due = executions::status.eq(RUNNING).and(executions::backend.eq(backend));
        let rows: Vec<(String, Option<String>)> = executions::table
            .filter(due.and(executions::ending.is_not_null()))
            .select((executions::id, executions::ending))
            .order(executions::id.asc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        let read =
            |(id, ending): (String, Option<String>)| (id, parse(&ending.unwrap_or_default()));
        Ok(rows.into_iter().map(read).collect())
    }

    async fn forget_wish(&self, id: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        diesel::update(executions::table.find(id))
            .set(executions::ending.eq(None::<String>))
            .execute(&mut conn)
            .await?;
        Ok(())
    }

    async fn waiting_executions(&self, most: i64) -> Result<Backlog, Error> {
        let mut conn = self.reader().await?;
        let now = Db::now(&mut conn).await?;
        let oldest: Option<i64> = executions::table
            .filter(executions::status.eq(ACCEPTED))
            .select(executions::created_at)
            .order(executions::created_at.asc())
            .first(&mut conn)
            .await
            .optional()?;
        Ok(Backlog {
            rows: count_up_to(&mut conn, "executions WHERE status = 'accepted'", most).await?,
            oldest: oldest.map(|at| Duration::from_micros(u64::try_from(now - at).unwrap_or(0))),
            dead: count_up_to(&mut conn, "executions WHERE rejected_at IS NOT NULL", most).await?,
        })
    }
}
