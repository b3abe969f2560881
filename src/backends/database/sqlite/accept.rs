//! Accepts the work of many requests. Moving to a thread that may block costs more than a
//! statement, so all statements share one move.

use diesel::{OptionalExtension, SqliteConnection, prelude::*, result::Error as DieselError};

use super::{
    super::{
        Acceptance, Admission, KeyUse, NewEvent, Work,
        rows::{ExecutionRow, HandOverRow, KeyRow, OutboxRow},
        schema::{executions, idempotency_keys, outbox},
    },
    dialect::Conn,
};
use crate::{error::Error, model::json::Fingerprint};

/// Accepts each admission at `now`, or tells why not.
pub(super) async fn accept(
    conn: &mut Conn,
    batch: &[&Admission],
    now: i64,
) -> Result<Vec<Acceptance>, Error> {
    let new = batch.iter().map(|admission| NewRows::of(admission, now));
    let new = new.collect::<Result<Vec<NewRows>, Error>>()?;
    let accepted = conn.spawn_blocking(move |conn| {
        conn.immediate_transaction(|conn| new.iter().map(|new| new.store(conn, now)).collect())
    });
    Ok(accepted.await?)
}

/// The rows of one request.
struct NewRows {
    key: Option<(KeyRow, Fingerprint)>,
    execution: Option<(ExecutionRow, HandOverRow)>,
    events: Vec<(OutboxRow, Fingerprint)>,
}

impl NewRows {
    fn of(admission: &Admission, now: i64) -> Result<Self, Error> {
        let key = |key: &KeyUse| (KeyRow::new(key, now), key.fingerprint.clone());
        let event = |new: &NewEvent| (OutboxRow::new(new, now), new.fingerprint.clone());
        let key = admission.key.as_ref().map(key);
        Ok(match &admission.work {
            Work::Events(events) => {
                Self { key, execution: None, events: events.iter().map(event).collect() }
            }
            Work::Execution(new) => {
                let row = ExecutionRow::new(&new.execution)?;
                let hand_over = HandOverRow::new(new.claim.as_ref(), now);
                let events = vec![event(&new.announcement)];
                Self { key, execution: Some((row, hand_over)), events }
            }
        })
    }

    fn store(&self, conn: &mut SqliteConnection, now: i64) -> Result<Acceptance, DieselError> {
        if let Some(earlier) = self.earlier_answer(conn, now)? {
            return Ok(earlier);
        }
        let acceptance = self.store_work(conn)?;
        // The key of a refused request stays free, because the client may repeat it with another
        // id.
        if let (Some((key, _)), Acceptance::Stored) = (&self.key, &acceptance) {
            diesel::replace_into(idempotency_keys::table).values(key).execute(conn)?;
        }
        Ok(acceptance)
    }

    /// The answer to an earlier request with the key.
    fn earlier_answer(
        &self,
        conn: &mut SqliteConnection,
        now: i64,
    ) -> Result<Option<Acceptance>, DieselError> {
        let Some((key, fingerprint)) = &self.key else { return Ok(None) };
        let first: Option<KeyRow> = idempotency_keys::table
            .find(key.primary_key())
            .filter(idempotency_keys::expires_at.gt(now))
            .select(KeyRow::as_select())
            .first(conn)
            .optional()?;
        Ok(first.map(|first| match first.answer {
            _ if !fingerprint.matches(&first.body_hash) => Acceptance::KeyReused,
            Some(answer) => Acceptance::Answered(answer),
            None => Acceptance::Busy,
        }))
    }

    fn store_work(&self, conn: &mut SqliteConnection) -> Result<Acceptance, DieselError> {
        if let Some((row, hand_over)) = &self.execution
            && !store_execution(conn, row, hand_over)?
        {
            return Ok(Acceptance::IdTaken);
        }
        let mut stored = Vec::with_capacity(self.events.len());
        for (place, (row, fingerprint)) in self.events.iter().enumerate() {
            let new: Option<i64> = diesel::insert_into(outbox::table)
                .values(row)
                .on_conflict_do_nothing()
                .returning(outbox::seq)
                .get_result(conn)
                .optional()?;
            if let Some(seq) = new {
                stored.push(seq);
            } else if is_other_event(conn, row, fingerprint)? {
                let stored = outbox::table.filter(outbox::seq.eq_any(stored));
                diesel::delete(stored).execute(conn)?;
                return Ok(Acceptance::EventTaken(place));
            }
        }
        Ok(Acceptance::Stored)
    }
}

/// False when another execution has the id. An execution stored by an earlier attempt is left
/// unchanged.
fn store_execution(
    conn: &mut SqliteConnection,
    row: &ExecutionRow,
    hand_over: &HandOverRow,
) -> Result<bool, DieselError> {
    let stored = diesel::insert_into(executions::table)
        .values((row, hand_over))
        .on_conflict_do_nothing()
        .execute(conn)?;
    if stored == 1 {
        return Ok(true);
    }
    let holder = executions::table.find(row.id()).select(executions::request_id);
    let holder: Option<String> = holder.first(conn).optional()?;
    Ok(holder.as_deref() == Some(row.request_id()))
}

/// True when the stored event with the same source and id has different content.
fn is_other_event(
    conn: &mut SqliteConnection,
    row: &OutboxRow,
    fingerprint: &Fingerprint,
) -> Result<bool, DieselError> {
    let same = outbox::source.eq(&row.source).and(outbox::event_id.eq(&row.event_id));
    let stored = outbox::table.filter(same).select(outbox::content_hash);
    let stored: Option<String> = stored.first(conn).optional()?;
    Ok(stored.is_some_and(|stored| !fingerprint.matches(&stored)))
}
