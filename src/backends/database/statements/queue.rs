//! Accepted executions that wait to be started.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use diesel::{prelude::*, sql_types::Text};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            ClaimedExecutions, Ended, ExecutionQueue, NewEvent, Release,
            dialect::Dialect,
            rows::{ExecutionRow, HandOverRow, json, micros, parse},
            schema::executions,
        },
        dialect::{Db, locked, transaction},
    },
    ACCEPTED, RUNNING,
    accept::announce,
    executions::change_status,
};
use crate::{
    error::Error,
    model::executions::{Ending, Outcome},
};

/// Claims the first waiting executions that fit the bounds.
fn claim(lease: i64, limit: i64, max_bytes: i64) -> String {
    let (now, lock) = (Db::now_expression(), Db::SKIP_LOCKED_EXECUTIONS);
    // In a single-process database, claims of another process were left by one that died.
    let left = if Db::SERVES_ONE_PROCESS { "owner <> $2" } else { "FALSE" };
    format!(
        "WITH clock AS MATERIALIZED (SELECT {now} AS now), \
         due AS MATERIALIZED (\
             SELECT id, created_at, octet_length(input) AS bytes FROM executions, clock \
             WHERE status = 'accepted' AND backend = $1 AND (claimed_until <= now OR {left}) \
             ORDER BY created_at LIMIT {limit} {lock}), \
         fitting AS (\
             SELECT id FROM (\
                 SELECT id, bytes, sum(bytes) OVER (ORDER BY created_at, id) AS total FROM due\
             ) AS summed WHERE total = bytes OR total <= {max_bytes}) \
         UPDATE executions SET owner = $2, claimed_until = (SELECT now FROM clock) + {lease}, \
             fence = fence + 1, tried_at = COALESCE(tried_at, (SELECT now FROM clock)) \
         WHERE id IN (SELECT id FROM fitting) RETURNING *"
    )
}

#[async_trait]
impl ExecutionQueue for Db {
    async fn claim_executions(
        &self,
        backend: &str,
        owner: &str,
        lease: Duration,
        limit: i64,
        max_bytes: i64,
    ) -> Result<ClaimedExecutions, Error> {
        let mut conn = self.writer().await?;
        let lease = micros(lease);
        let mut rows: Vec<(ExecutionRow, HandOverRow)> =
            diesel::sql_query(claim(lease, limit, max_bytes))
                .bind::<Text, _>(backend)
                .bind::<Text, _>(owner)
                .load(&mut conn)
                .await?;
        rows.sort_unstable_by_key(|(row, _)| row.created_at());
        let mut executions = ClaimedExecutions::default();
        for (row, hand_over) in rows {
            match hand_over.claimed(row, lease) {
                Ok(claimed) => executions.readable.push(claimed),
                Err(unreadable) => executions.unreadable.push(*unreadable),
            }
        }
        Ok(executions)
    }

    async fn release_executions(&self, claims: &[Release]) -> Result<(), Error> {
        let mut alike: BTreeMap<(i64, bool), Vec<&str>> = BTreeMap::new();
        for Release { id, fence, untried } in claims {
            alike.entry((*fence, *untried)).or_default().push(id);
        }
        let mut conn = self.writer().await?;
        let released: Result<(), Error> = transaction!(conn, async |conn| {
            for ((fence, untried), ids) in alike {
                let claimed = executions::status.eq(ACCEPTED).and(executions::fence.eq(fence));
                let claimed = executions::id.eq_any(ids).and(claimed);
                let forget_try = untried.then_some(executions::tried_at.eq(None::<i64>));
                diesel::update(executions::table.filter(claimed))
                    .set((executions::claimed_until.eq(0), forget_try))
                    .execute(conn)
                    .await?;
            }
            Ok(())
        });
        released
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
}
