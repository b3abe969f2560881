//! Runs of the embedded execution service.

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            ClaimedRun, Run, RunStore,
            dialect::Dialect,
            rows::{EndedRow, RunRow, micros, without_nul},
            schema::runs,
        },
        dialect::{Conn, Db, skip_locked, transaction},
    },
    RUNNING,
};
use crate::{
    error::Error,
    model::{
        executions::{ListedEnd, Outcome, StartRequest, Status},
        json::Json,
        time::Timestamp,
    },
};

/// Ends a claimed run that cannot be read, because no other process could read it either.
async fn end_unreadable(
    conn: &mut Conn,
    (id, fence): (&str, i64),
    error: &Error,
    now: i64,
) -> Result<(), Error> {
    tracing::error!(%error, execution.id = id, "a run cannot be read and is marked as failed");
    diesel::update(runs::table.find(id).filter(runs::fence.eq(fence)))
        .set((
            runs::status.eq(Status::Failed.as_str()),
            runs::error.eq(error.to_string()),
            runs::finished_at.eq(now),
        ))
        .execute(conn)
        .await?;
    Ok(())
}

#[async_trait]
impl RunStore for Db {
    async fn insert_run(&self, request: &StartRequest) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let inserted = diesel::insert_into(runs::table)
            .values(RunRow::new(request, now)?)
            .on_conflict_do_nothing()
            .execute(&mut conn)
            .await?;
        Ok(inserted == 1)
    }

    async fn run(&self, id: &str) -> Result<Option<Run>, Error> {
        let mut conn = self.reader().await?;
        let row: Option<RunRow> =
            runs::table.find(id).select(RunRow::as_select()).first(&mut conn).await.optional()?;
        Ok(row.map(RunRow::read))
    }

    async fn runs(&self, ids: &[String]) -> Result<Vec<Run>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<RunRow> = runs::table
            .filter(runs::id.eq_any(ids))
            .select(RunRow::as_select())
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(RunRow::read).collect())
    }

    async fn ended_runs(
        &self,
        since: Timestamp,
        after: Option<(Timestamp, &str)>,
        limit: i64,
    ) -> Result<Vec<ListedEnd>, Error> {
        let mut conn = self.reader().await?;
        // Behind an empty id come all that ended at the same time.
        let (at, id) = after.unwrap_or((since, ""));
        let at = at.as_microsecond();
        let behind = runs::finished_at.gt(at).or(runs::finished_at.eq(at).and(runs::id.gt(id)));
        let rows: Vec<EndedRow> = runs::table
            // The index starts at the first condition.
            .filter(runs::finished_at.ge(at).and(behind))
            .select(EndedRow::as_select())
            .order((runs::finished_at.asc(), runs::id.asc()))
            .limit(limit)
            .load(&mut conn)
            .await?;
        Ok(rows.into_iter().map(EndedRow::read).collect())
    }

    async fn running_runs(&self, after: Option<&str>, limit: i64) -> Result<Vec<String>, Error> {
        let mut conn = self.reader().await?;
        Ok(runs::table
            .filter(runs::status.eq(RUNNING).and(runs::id.gt(after.unwrap_or_default())))
            .select(runs::id)
            .order(runs::id.asc())
            .limit(limit)
            .load(&mut conn)
            .await?)
    }

    async fn claim_runs(
        &self,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<ClaimedRun>, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let rows: Result<Vec<RunRow>, Error> = transaction!(conn, async |conn| {
            let free = runs::status.eq(RUNNING).and(runs::claimed_until.le(now));
            let query = runs::table
                .filter(free)
                .select(runs::id)
                .order(runs::created_at.asc())
                .limit(limit);
            let ids: Vec<String> = skip_locked!(query).load(conn).await?;
            // Each claim has its own fencing number, so that a holder that lost its claim is
            // recognised.
            let claimed = diesel::update(runs::table.filter(runs::id.eq_any(ids)))
                .set((
                    runs::owner.eq(owner),
                    runs::claimed_until.eq(now.saturating_add(micros(lease))),
                    runs::fence.eq(runs::fence + 1),
                ))
                .returning(RunRow::as_returning())
                .get_results(conn)
                .await?;
            Ok(claimed)
        });
        let mut claimed = Vec::new();
        for row in rows? {
            let (id, fence) = (row.id.clone(), row.fence);
            match row.claimed(now) {
                Ok(run) => claimed.push(run),
                Err(error) => end_unreadable(&mut conn, (&id, fence), &error, now).await?,
            }
        }
        Ok(claimed)
    }

    async fn renew_runs(
        &self,
        owner: &str,
        ids: &[String],
        lease: Duration,
    ) -> Result<Vec<(String, bool)>, Error> {
        let mut conn = self.writer().await?;
        let until = Db::now(&mut conn).await?.saturating_add(micros(lease));
        let mine = runs::status.eq(RUNNING).and(runs::owner.eq(owner)).and(runs::id.eq_any(ids));
        Ok(diesel::update(runs::table.filter(mine))
            .set(runs::claimed_until.eq(until))
            .returning((runs::id, runs::cancel_requested))
            .get_results(&mut conn)
            .await?)
    }

    async fn note_try(
        &self,
        id: &str,
        fence: i64,
        tries: u32,
        pause: Duration,
    ) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let next_try_at = Db::now(&mut conn).await?.saturating_add(micros(pause));
        let claimed = runs::status.eq(RUNNING).and(runs::fence.eq(fence));
        let changed = diesel::update(runs::table.find(id).filter(claimed))
            .set((
                runs::tries.eq(i32::try_from(tries).unwrap_or(i32::MAX)),
                runs::next_try_at.eq(next_try_at),
            ))
            .execute(&mut conn)
            .await?;
        Ok(changed == 1)
    }

    async fn finish_run(&self, id: &str, fence: i64, outcome: &Outcome) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let claimed = runs::status.eq(RUNNING).and(runs::fence.eq(fence));
        let result = outcome.result.as_ref().map(Json::text);
        let finished_at = Db::now(&mut conn).await?;
        let changed = diesel::update(runs::table.find(id).filter(claimed))
            .set((
                runs::status.eq(outcome.status.as_str()),
                runs::result.eq(result),
                runs::error.eq(outcome.error.as_deref().map(without_nul)),
                runs::finished_at.eq(finished_at),
            ))
            .execute(&mut conn)
            .await?;
        Ok(changed == 1)
    }

    async fn cancel_run(&self, id: &str) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let changed: Result<usize, Error> = transaction!(conn, async |conn| {
            let running = runs::table.find(id).filter(runs::status.eq(RUNNING));
            let unclaimed = running.filter(runs::claimed_until.le(now));
            let cancelled = diesel::update(unclaimed)
                .set((
                    runs::status.eq(Status::Cancelled.as_str()),
                    runs::error.eq("cancelled before it began"),
                    runs::finished_at.eq(now),
                ))
                .execute(conn)
                .await?;
            if cancelled == 1 {
                return Ok(1);
            }
            let running = runs::table.find(id).filter(runs::status.eq(RUNNING));
            Ok(diesel::update(running).set(runs::cancel_requested.eq(true)).execute(conn).await?)
        });
        Ok(changed? == 1)
    }

    async fn terminate_run(&self, id: &str, reason: &str) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let finished_at = Db::now(&mut conn).await?;
        let changed = diesel::update(runs::table.find(id).filter(runs::status.eq(RUNNING)))
            .set((
                runs::status.eq(Status::Terminated.as_str()),
                runs::error.eq(without_nul(reason)),
                runs::finished_at.eq(finished_at),
            ))
            .execute(&mut conn)
            .await?;
        Ok(changed == 1)
    }

    async fn release_runs(&self, owner: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let mine = runs::status.eq(RUNNING).and(runs::owner.eq(owner));
        diesel::update(runs::table.filter(mine))
            .set(runs::claimed_until.eq(0))
            .execute(&mut conn)
            .await?;
        Ok(())
    }

    async fn release_runs_of_others(&self, instance: &str) -> Result<(), Error> {
        if !Db::SERVES_ONE_PROCESS {
            return Ok(());
        }
        let mut conn = self.writer().await?;
        let others = runs::status.eq(RUNNING).and(runs::owner.not_like(format!("{instance}%")));
        diesel::update(runs::table.filter(others))
            .set(runs::claimed_until.eq(0))
            .execute(&mut conn)
            .await?;
        Ok(())
    }
}
