//! The statements, written once and compiled for both databases: `super` gives the connection
//! type, the pool, the clock and the `transaction!` macro.

mod dead_letters;
mod outbox;

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        Acceptance, ClaimedRun, ExecutionStore, KeyUse, Run, RunStore,
        errors::query_error,
        rows::{ExecutionRow, KeyRow, RunRow, json, micros},
        schema::{executions, idempotency_keys, instances, runs, schema_info},
    },
    Conn, Db, now,
};
use crate::{
    error::Error,
    model::{
        executions::{Execution, ListFilter, Outcome, StartRequest, Status},
        time::Timestamp,
    },
};

const ACCEPTED: &str = Status::Accepted.as_str();
const RUNNING: &str = Status::Running.as_str();

/// The oldest program version that may use the schema.
pub(super) async fn oldest_program(conn: &mut Conn) -> Result<String, Error> {
    schema_info::table.select(schema_info::oldest_program).first(conn).await.map_err(query_error)
}

/// Writes this instance's row.
pub(super) async fn touch_instance(conn: &mut Conn, instance: &str) -> Result<(), Error> {
    let seen_at = now(conn).await?;
    diesel::insert_into(instances::table)
        .values((instances::id.eq(instance), instances::seen_at.eq(seen_at)))
        .on_conflict(instances::id)
        .do_update()
        .set(instances::seen_at.eq(seen_at))
        .execute(conn)
        .await
        .map(|_| ())
        .map_err(query_error)
}

/// Stores the key, or says what became of it earlier.
async fn use_key(
    conn: &mut Conn,
    key: &KeyUse,
    execution: &str,
    now: i64,
) -> Result<Option<Acceptance>, Error> {
    let mine =
        idempotency_keys::scope.eq(&key.scope).and(idempotency_keys::idempotency_key.eq(&key.key));
    diesel::delete(
        idempotency_keys::table.filter(mine).filter(idempotency_keys::expires_at.le(now)),
    )
    .execute(conn)
    .await
    .map_err(query_error)?;
    let inserted = diesel::insert_into(idempotency_keys::table)
        .values(KeyRow::new(key, execution, now))
        .on_conflict_do_nothing()
        .execute(conn)
        .await
        .map_err(query_error)?;
    if inserted == 1 {
        return Ok(None);
    }
    let mine =
        idempotency_keys::scope.eq(&key.scope).and(idempotency_keys::idempotency_key.eq(&key.key));
    let first: Option<KeyRow> = idempotency_keys::table
        .filter(mine)
        .select(KeyRow::as_select())
        .first(conn)
        .await
        .optional()
        .map_err(query_error)?;
    let Some(first) = first else { return Ok(Some(Acceptance::Busy)) };
    if first.body_hash != key.body_hash {
        return Ok(Some(Acceptance::KeyReused));
    }
    if let Some(answer) = first.answer {
        return Ok(Some(Acceptance::Answered(answer)));
    }
    if first.busy_until > now {
        return Ok(Some(Acceptance::Busy));
    }
    // The first request ended without an answer, as when its process died; what it stored stands.
    let stored = find_execution(conn, &first.execution_id).await?;
    Ok(Some(stored.map_or(Acceptance::Busy, |e| Acceptance::Unanswered(Box::new(e)))))
}

/// `PostgreSQL` keeps no NUL in text, and what other services answer may have some.
fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

async fn find_execution(conn: &mut Conn, id: &str) -> Result<Option<Execution>, Error> {
    let row: Option<ExecutionRow> = executions::table
        .find(id)
        .select(ExecutionRow::as_select())
        .first(conn)
        .await
        .optional()
        .map_err(query_error)?;
    row.map(ExecutionRow::read).transpose()
}

/// Rolls a transaction back, with an answer although nothing failed.
enum Stop<T> {
    With(T),
    Failed(Error),
}

impl<T> From<Error> for Stop<T> {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl<T> From<diesel::result::Error> for Stop<T> {
    fn from(error: diesel::result::Error) -> Self {
        Self::Failed(query_error(error))
    }
}

async fn store(
    conn: &mut Conn,
    execution: &Execution,
    key: Option<&KeyUse>,
) -> Result<Acceptance, Stop<Acceptance>> {
    if let Some(key) = key {
        let now = now(conn).await?;
        if let Some(earlier) = use_key(conn, key, &execution.id, now).await? {
            return Err(Stop::With(earlier));
        }
    }
    let inserted = diesel::insert_into(executions::table)
        .values(ExecutionRow::new(execution)?)
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    // Stopping rolls the key back: a request that was refused may be repeated with another id.
    if inserted == 1 { Ok(Acceptance::Stored) } else { Err(Stop::With(Acceptance::IdTaken)) }
}

fn read_all(rows: Vec<ExecutionRow>) -> Result<Vec<Execution>, Error> {
    rows.into_iter().map(ExecutionRow::read).collect()
}

#[async_trait]
impl ExecutionStore for Db {
    async fn accept(
        &self,
        execution: &Execution,
        key: Option<&KeyUse>,
    ) -> Result<Acceptance, Error> {
        let mut conn = self.writer().await?;
        let stored: Result<Acceptance, Stop<Acceptance>> =
            transaction!(conn, async |conn| store(conn, execution, key).await);
        match stored {
            Ok(acceptance) | Err(Stop::With(acceptance)) => Ok(acceptance),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn answer(&self, key: &KeyUse, answer: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        diesel::update(idempotency_keys::table.find((&key.scope, &key.key)))
            .set(idempotency_keys::answer.eq(answer))
            .execute(&mut conn)
            .await
            .map(|_| ())
            .map_err(query_error)
    }

    async fn withdraw(&self, id: &str, key: Option<&KeyUse>) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let removed: Result<bool, diesel::result::Error> = transaction!(conn, async |conn| {
            let gone =
                diesel::delete(executions::table.find(id).filter(executions::status.eq(ACCEPTED)))
                    .execute(conn)
                    .await?;
            if let (1, Some(key)) = (gone, key) {
                diesel::delete(idempotency_keys::table.find((&key.scope, &key.key)))
                    .execute(conn)
                    .await?;
            }
            Ok(gone == 1)
        });
        removed.map_err(query_error)
    }

    async fn execution(&self, id: &str) -> Result<Option<Execution>, Error> {
        find_execution(&mut *self.reader().await?, id).await
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
        read_all(query.load(&mut conn).await.map_err(query_error)?)
    }

    async fn change(&self, id: &str, outcome: &Outcome) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let confirmed_at = now(&mut conn).await?;
        let result = outcome.result.as_ref().map(json).transpose()?;
        let started_at = outcome.started_at.map(Timestamp::as_microsecond);
        let before: &[&str] =
            if outcome.status == Status::Running { &[ACCEPTED] } else { &[ACCEPTED, RUNNING] };
        let row = executions::table.find(id).filter(executions::status.eq_any(before));
        diesel::update(row)
            .set((
                executions::status.eq(outcome.status.as_str()),
                executions::result.eq(result),
                executions::error.eq(outcome.error.as_deref().map(without_nul)),
                started_at.map(|at| executions::started_at.eq(at)),
                executions::finished_at.eq(outcome.finished_at.map(Timestamp::as_microsecond)),
                executions::confirmed_at.eq(confirmed_at),
            ))
            .execute(&mut conn)
            .await
            .map(|changed| changed == 1)
            .map_err(query_error)
    }

    async fn confirm(&self, ids: &[String]) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let confirmed_at = now(&mut conn).await?;
        diesel::update(executions::table.filter(executions::id.eq_any(ids)))
            .set(executions::confirmed_at.eq(confirmed_at))
            .execute(&mut conn)
            .await
            .map(|_| ())
            .map_err(query_error)
    }

    async fn unconfirmed(&self, backend: &str, limit: i64) -> Result<Vec<Execution>, Error> {
        let mut conn = self.reader().await?;
        let rows = executions::table
            .filter(executions::status.eq(RUNNING).and(executions::backend.eq(backend)))
            .select(ExecutionRow::as_select())
            .order(executions::confirmed_at.asc())
            .limit(limit)
            .load(&mut conn)
            .await
            .map_err(query_error)?;
        read_all(rows)
    }

    async fn open_among(&self, ids: &[String]) -> Result<Vec<Execution>, Error> {
        let mut conn = self.reader().await?;
        let open = executions::status.eq_any([ACCEPTED, RUNNING]);
        let rows = executions::table
            .filter(executions::id.eq_any(ids).and(open))
            .select(ExecutionRow::as_select())
            .load(&mut conn)
            .await
            .map_err(query_error)?;
        read_all(rows)
    }

    async fn not_handed_over(
        &self,
        backend: &str,
        older_than: Duration,
        limit: i64,
    ) -> Result<Vec<Execution>, Error> {
        let mut conn = self.reader().await?;
        let before = now(&mut conn).await?.saturating_sub(micros(older_than));
        let rows = executions::table
            .filter(executions::status.eq(ACCEPTED).and(executions::created_at.le(before)))
            .filter(executions::backend.eq(backend))
            .select(ExecutionRow::as_select())
            .order((executions::created_at.asc(), executions::id.asc()))
            .limit(limit)
            .load(&mut conn)
            .await
            .map_err(query_error)?;
        read_all(rows)
    }

    async fn forget_keys(&self) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let now = now(&mut conn).await?;
        let expired = idempotency_keys::expires_at.le(now);
        diesel::delete(idempotency_keys::table.filter(expired))
            .execute(&mut conn)
            .await
            .map_err(query_error)
    }
}

#[async_trait]
impl RunStore for Db {
    async fn insert_run(&self, request: &StartRequest) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = now(&mut conn).await?;
        diesel::insert_into(runs::table)
            .values(RunRow::new(request, now)?)
            .on_conflict_do_nothing()
            .execute(&mut conn)
            .await
            .map(|inserted| inserted == 1)
            .map_err(query_error)
    }

    async fn run(&self, id: &str) -> Result<Option<Run>, Error> {
        let mut conn = self.reader().await?;
        let row: Option<RunRow> = runs::table
            .find(id)
            .select(RunRow::as_select())
            .first(&mut conn)
            .await
            .optional()
            .map_err(query_error)?;
        row.map(RunRow::read).transpose()
    }

    async fn ended_runs(&self, since: Timestamp, limit: i64) -> Result<Vec<Run>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<RunRow> = runs::table
            .filter(runs::finished_at.ge(since.as_microsecond()))
            .select(RunRow::as_select())
            .order((runs::finished_at.asc(), runs::id.asc()))
            .limit(limit)
            .load(&mut conn)
            .await
            .map_err(query_error)?;
        rows.into_iter().map(RunRow::read).collect()
    }

    async fn claim_runs(
        &self,
        owner: &str,
        lease: Duration,
        limit: i64,
    ) -> Result<Vec<ClaimedRun>, Error> {
        let mut conn = self.writer().await?;
        let now = now(&mut conn).await?;
        let rows: Result<Vec<RunRow>, diesel::result::Error> = transaction!(conn, async |conn| {
            let free = runs::status.eq(RUNNING).and(runs::claimed_until.le(now));
            let query = runs::table
                .filter(free)
                .select(runs::id)
                .order(runs::created_at.asc())
                .limit(limit);
            let ids: Vec<String> = skip_locked!(query).load(conn).await?;
            // Each claim has a number of its own, so that a holder who lost it is recognised.
            diesel::update(runs::table.filter(runs::id.eq_any(ids)))
                .set((
                    runs::owner.eq(owner),
                    runs::claimed_until.eq(now.saturating_add(micros(lease))),
                    runs::fence.eq(runs::fence + 1),
                ))
                .returning(RunRow::as_returning())
                .get_results(conn)
                .await
        });
        let rows = rows.map_err(query_error)?;
        // A row that this version cannot read is left to its lease, and to another version.
        Ok(rows.into_iter().filter_map(|row| row.claimed(now).ok()).collect())
    }

    async fn renew_runs(
        &self,
        owner: &str,
        ids: &[String],
        lease: Duration,
    ) -> Result<Vec<(String, bool)>, Error> {
        let mut conn = self.writer().await?;
        let until = now(&mut conn).await?.saturating_add(micros(lease));
        let mine = runs::status.eq(RUNNING).and(runs::owner.eq(owner)).and(runs::id.eq_any(ids));
        diesel::update(runs::table.filter(mine))
            .set(runs::claimed_until.eq(until))
            .returning((runs::id, runs::cancel_requested))
            .get_results(&mut conn)
            .await
            .map_err(query_error)
    }

    async fn note_try(
        &self,
        id: &str,
        fence: i64,
        tries: u32,
        pause: Duration,
    ) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let next_try_at = now(&mut conn).await?.saturating_add(micros(pause));
        let claimed = runs::status.eq(RUNNING).and(runs::fence.eq(fence));
        diesel::update(runs::table.find(id).filter(claimed))
            .set((
                runs::tries.eq(i32::try_from(tries).unwrap_or(i32::MAX)),
                runs::next_try_at.eq(next_try_at),
            ))
            .execute(&mut conn)
            .await
            .map(|changed| changed == 1)
            .map_err(query_error)
    }

    async fn finish_run(&self, id: &str, fence: i64, outcome: &Outcome) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let claimed = runs::status.eq(RUNNING).and(runs::fence.eq(fence));
        let result = outcome.result.as_ref().map(json).transpose()?;
        let finished_at = now(&mut conn).await?;
        diesel::update(runs::table.find(id).filter(claimed))
            .set((
                runs::status.eq(outcome.status.as_str()),
                runs::result.eq(result),
                runs::error.eq(outcome.error.as_deref().map(without_nul)),
                runs::finished_at.eq(finished_at),
            ))
            .execute(&mut conn)
            .await
            .map(|changed| changed == 1)
            .map_err(query_error)
    }

    async fn cancel_run(&self, id: &str) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let now = now(&mut conn).await?;
        let changed: Result<usize, diesel::result::Error> = transaction!(conn, async |conn| {
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
            diesel::update(running).set(runs::cancel_requested.eq(true)).execute(conn).await
        });
        changed.map(|changed| changed == 1).map_err(query_error)
    }

    async fn terminate_run(&self, id: &str, reason: &str) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let finished_at = now(&mut conn).await?;
        diesel::update(runs::table.find(id).filter(runs::status.eq(RUNNING)))
            .set((
                runs::status.eq(Status::Terminated.as_str()),
                runs::error.eq(without_nul(reason)),
                runs::finished_at.eq(finished_at),
            ))
            .execute(&mut conn)
            .await
            .map(|changed| changed == 1)
            .map_err(query_error)
    }

    async fn release_runs(&self, owner: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let mine = runs::status.eq(RUNNING).and(runs::owner.eq(owner));
        diesel::update(runs::table.filter(mine))
            .set(runs::claimed_until.eq(0))
            .execute(&mut conn)
            .await
            .map(|_| ())
            .map_err(query_error)
    }

    async fn release_runs_of_others(&self, instance: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let others = runs::status.eq(RUNNING).and(runs::owner.not_like(format!("{instance}%")));
        diesel::update(runs::table.filter(others))
            .set(runs::claimed_until.eq(0))
            .execute(&mut conn)
            .await
            .map(|_| ())
            .map_err(query_error)
    }
}
