//! Changes the status of many executions. Moving to a thread that may block costs more than a
//! statement, so all statements share one move.

use diesel::{SqliteConnection, prelude::*, result::Error as DieselError};

use super::{
    super::{
        StatusChange,
        rows::{OutboxRow, OutcomeRow},
        schema::{executions, outbox},
    },
    dialect::Conn,
};
use crate::{error::Error, model::executions::Status};

/// Makes those of the changes that lead forward, with their announcements. Returns the ids of the
/// changed executions.
pub(super) async fn change(
    conn: &mut Conn,
    changes: &[&StatusChange],
    now: i64,
) -> Result<Vec<String>, Error> {
    let changes: Vec<(StatusChange, Vec<OutboxRow>)> = changes
        .iter()
        .map(|&change| {
            let rows = change.announcements.iter().map(|event| OutboxRow::new(event, now));
            (StatusChange { announcements: Vec::new(), ..change.clone() }, rows.collect())
        })
        .collect();
    let made = conn.spawn_blocking(move |conn| {
        conn.immediate_transaction(|conn| {
            let mut made = Vec::new();
            for (change, announcements) in changes {
                if make(conn, &change, &announcements, now)? {
                    made.push(change.id);
                }
            }
            Ok(made)
        })
    });
    Ok(made.await?)
}

fn make(
    conn: &mut SqliteConnection,
    StatusChange { id, outcome, .. }: &StatusChange,
    announcements: &[OutboxRow],
    now: i64,
) -> Result<bool, DieselError> {
    let before = executions::status.eq_any(may_become(outcome.status));
    let stored = executions::table.find(id).filter(before).select(executions::started_at);
    let Some(started_at) = stored.first(conn).optional()? else { return Ok(false) };
    let outcome = OutcomeRow::new(outcome, now).started(started_at);
    diesel::update(executions::table.find(id)).set(outcome).execute(conn)?;
    for announcement in announcements {
        diesel::insert_into(outbox::table)
            .values(announcement)
            .on_conflict_do_nothing()
            .execute(conn)?;
    }
    Ok(true)
}

/// The statuses from which an execution may go on to `status`. A final status never changes.
fn may_become(status: Status) -> &'static [&'static str] {
    const ACCEPTED: &str = Status::Accepted.as_str();
    const RUNNING: &str = Status::Running.as_str();
    match status {
        Status::Accepted => &[],
        Status::Running => &[ACCEPTED],
        _ => &[ACCEPTED, RUNNING],
    }
}
