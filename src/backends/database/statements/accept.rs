//! Accepted work: records, events and idempotency keys.

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        Accept, Acceptance, Admission, Claim, KeyUse, NewEvent, NewRecord, Work,
        dialect::Dialect,
        errors::is_lock_timeout,
        rows::{ExecutionRow, HandOverRow, KeyRow, OutboxRow},
        schema::{executions, idempotency_keys, outbox},
    },
    dialect::{Conn, Db, transaction},
};
use crate::{
    error::{Error, ErrorKind},
    model::executions::Execution,
};

/// Stores events, except those already stored.
pub(super) async fn announce(conn: &mut Conn, events: &[NewEvent], now: i64) -> Result<(), Error> {
    for event in events {
        insert_event(conn, event, now).await?;
    }
    Ok(())
}

/// The new row's place in the sequence, unless its source and id are taken.
async fn insert_event(conn: &mut Conn, new: &NewEvent, now: i64) -> Result<Option<i64>, Error> {
    Ok(diesel::insert_into(outbox::table)
        .values(OutboxRow::new(new, now))
        .on_conflict_do_nothing()
        .returning(outbox::seq)
        .get_result(conn)
        .await
        .optional()?)
}

/// Stores the key, or returns its earlier outcome.
async fn use_key(conn: &mut Conn, key: &KeyUse, now: i64) -> Result<Option<Acceptance>, Error> {
    let row = idempotency_keys::table.find((&key.scope, &key.key));
    diesel::delete(row.filter(idempotency_keys::expires_at.le(now))).execute(conn).await?;
    // Waits for a concurrent transaction that uses the key.
    let inserted = diesel::insert_into(idempotency_keys::table)
        .values(KeyRow::new(key, now))
        .on_conflict_do_nothing()
        .execute(conn)
        .await
        .map_err(key_error)?;
    if inserted == 1 {
        return Ok(None);
    }
    let first: Option<KeyRow> = idempotency_keys::table
        .find((&key.scope, &key.key))
        .select(KeyRow::as_select())
        .first(conn)
        .await
        .optional()?;
    Ok(Some(match first {
        Some(first) if !key.fingerprint.matches(&first.body_hash) => Acceptance::KeyReused,
        Some(KeyRow { answer: Some(answer), .. }) => Acceptance::Answered(answer),
        _ => Acceptance::Busy,
    }))
}

/// The preceding deletion already holds the table lock that the insertion needs, so a lock timeout
/// here can only come from the first request with the key.
fn key_error(error: diesel::result::Error) -> Error {
    if is_lock_timeout(&error) {
        let message = "the first request with this Idempotency-Key is not answered yet";
        return Error::new(ErrorKind::Conflict, message).with_source(error);
    }
    error.into()
}

/// False when another execution has the id. An execution stored by an earlier attempt is left
/// unchanged.
async fn insert_execution(
    conn: &mut Conn,
    execution: &Execution,
    claim: Option<&Claim>,
    now: i64,
) -> Result<bool, Error> {
    let inserted = diesel::insert_into(executions::table)
        .values((ExecutionRow::new(execution)?, HandOverRow::new(claim, now)))
        .on_conflict_do_nothing()
        .execute(conn)
        .await?;
    if inserted == 1 {
        return Ok(true);
    }
    let holder: Option<String> = executions::table
        .find(&execution.id)
        .select(executions::request_id)
        .first(conn)
        .await
        .optional()?;
    Ok(holder.as_ref() == Some(&execution.request_id))
}

/// Stores the new events, unless one has the source and id of a different event.
async fn insert_events(
    conn: &mut Conn,
    events: &[NewEvent],
    now: i64,
) -> Result<Acceptance, Error> {
    let mut inserted = Vec::with_capacity(events.len());
    for (place, new) in events.iter().enumerate() {
        if let Some(seq) = insert_event(conn, new, now).await? {
            inserted.push(seq);
            continue;
        }
        let taken = outbox::source.eq(&new.event.source).and(outbox::event_id.eq(&new.event.id));
        let earlier: Option<String> = outbox::table
            .filter(taken)
            .select(outbox::content_hash)
            .first(conn)
            .await
            .optional()?;
        if earlier.is_some_and(|earlier| !new.fingerprint.matches(&earlier)) {
            diesel::delete(outbox::table.filter(outbox::seq.eq_any(inserted)))
                .execute(conn)
                .await?;
            return Ok(Acceptance::EventTaken(place));
        }
    }
    Ok(Acceptance::Stored)
}

async fn admit(conn: &mut Conn, admission: &Admission, now: i64) -> Result<Acceptance, Error> {
    if let Some(key) = &admission.key
        && let Some(earlier) = use_key(conn, key, now).await?
    {
        return Ok(earlier);
    }
    let acceptance = match &admission.work {
        Work::Events(events) => insert_events(conn, events, now).await?,
        Work::Execution(new) => {
            let NewRecord { execution, announcement, claim } = &**new;
            if insert_execution(conn, execution, claim.as_ref(), now).await? {
                announce(conn, std::slice::from_ref(announcement), now).await?;
                Acceptance::Stored
            } else {
                Acceptance::IdTaken
            }
        }
    };
    // The key of a refused request stays free, because the client may repeat it with another id.
    if let (Some(key), false) = (&admission.key, acceptance == Acceptance::Stored) {
        diesel::delete(idempotency_keys::table.find((&key.scope, &key.key))).execute(conn).await?;
    }
    Ok(acceptance)
}

/// The events of a batch that contains only events.
fn only_events<'a>(batch: &[&'a Admission]) -> Option<Vec<&'a NewEvent>> {
    let mut all = Vec::new();
    for admission in batch {
        match &admission.work {
            Work::Events(events) if admission.key.is_none() => all.extend(events),
            _ => return None,
        }
    }
    Some(all)
}

#[async_trait]
impl Accept for Db {
    async fn accept(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        let mut conn = self.first_writer().await?;
        if let Some(events) = only_events(batch)
            && Db::insert_all(&mut conn, &events).await?
        {
            self.committed(&mut conn).await?;
            return Ok(vec![Acceptance::Stored; batch.len()]);
        }
        let now = Db::now(&mut conn).await?;
        let accepted: Result<Vec<Acceptance>, Error> = transaction!(conn, async |conn| {
            let mut accepted = Vec::with_capacity(batch.len());
            for admission in batch {
                accepted.push(admit(conn, admission, now).await?);
            }
            Ok(accepted)
        });
        let accepted = accepted?;
        self.committed(&mut conn).await?;
        Ok(accepted)
    }

    async fn forget_keys(&self, limit: i64) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        // One transaction for all, because each commit waits for the disk.
        let forgotten: Result<usize, Error> = transaction!(conn, async |conn| {
            let expired: Vec<(String, String)> = idempotency_keys::table
                .filter(idempotency_keys::expires_at.le(now))
                .select((idempotency_keys::scope, idempotency_keys::idempotency_key))
                .order(idempotency_keys::expires_at.asc())
                .limit(limit)
                .load(conn)
                .await?;
            let mut forgotten = 0;
            for (scope, key) in expired {
                let row = idempotency_keys::table.find((scope, key));
                forgotten += diesel::delete(row.filter(idempotency_keys::expires_at.le(now)))
                    .execute(conn)
                    .await?;
            }
            Ok(forgotten)
        });
        forgotten
    }
}
