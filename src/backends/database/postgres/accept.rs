//! Accepts the work of many requests with one statement, which is one round trip and a transaction
//! by itself: nothing stays locked while this process is paused.

mod statement;

use diesel::{
    prelude::*,
    result::{DatabaseErrorKind, Error as DieselError},
};
use diesel_async::{AsyncConnection, RunQueryDsl};

use self::statement::{AcceptAll, Exception, outcomes};
use super::{
    super::{
        Acceptance, Admission, errors::is_lock_timeout, rows::KeyRow, schema::idempotency_keys,
    },
    dialect::Conn,
};
use crate::error::{Error, ErrorKind};

/// How often a batch is tried whose ids or events another process is storing at the same time. Each
/// try sees what the other has committed.
const TRIES: u32 = 5;

/// Accepts each admission, or tells why not.
pub(super) async fn accept(
    conn: &mut Conn,
    batch: &[&Admission],
) -> Result<Vec<Acceptance>, Error> {
    let mut accepted = vec![Acceptance::Stored; batch.len()];
    let all: Vec<(usize, &Admission)> = batch.iter().copied().enumerate().collect();
    let raced = match accept_once(conn, &all, &mut accepted).await {
        Err(error) if error.kind() == ErrorKind::Busy && waits_for_key(conn, batch).await => {
            return Ok(vec![Acceptance::Busy]);
        }
        raced => raced?,
    };
    if !raced.is_empty() {
        let raced: Vec<(usize, &Admission)> = raced.into_iter().map(|at| (at, batch[at])).collect();
        // The others are committed, so they do not share a failure of this attempt.
        let still = match accept_once(conn, &raced, &mut accepted).await {
            Ok(still) => still,
            Err(_) => raced.into_iter().map(|(at, _)| at).collect(),
        };
        for at in still {
            accepted[at] = Acceptance::Busy;
        }
    }
    Ok(accepted)
}

/// Accepts admissions, and gives those whose key was used by another process at the same time: none
/// of their work is stored.
async fn accept_once(
    conn: &mut Conn,
    new: &[(usize, &Admission)],
    accepted: &mut [Acceptance],
) -> Result<Vec<usize>, Error> {
    let statement = AcceptAll::new(new)?;
    let mut raced = Vec::new();
    for (at, outcome, answer, place) in try_to(conn, &statement).await? {
        let at = index(at);
        match outcome.as_str() {
            outcomes::RACED => raced.push(at),
            // The first outcome of an admission decides, as that is the one of its key.
            _ if accepted[at] != Acceptance::Stored => {}
            outcome => accepted[at] = refusal(outcome, answer, place)?,
        }
    }
    Ok(raced)
}

async fn try_to(conn: &mut Conn, statement: &AcceptAll<'_>) -> Result<Vec<Exception>, Error> {
    let mut tries = 1;
    loop {
        match statement.load(conn).await {
            Err(DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, _))
                if tries < TRIES =>
            {
                tries += 1;
            }
            stored => return Ok(stored?),
        }
    }
}

/// True when the one request of the batch waits for a transaction that uses its key.
async fn waits_for_key(conn: &mut Conn, batch: &[&Admission]) -> bool {
    let [Admission { key: Some(key), .. }] = batch else { return false };
    let tried: Result<(), DieselError> = conn
        .transaction(async |conn| {
            let row = idempotency_keys::table.find((&key.scope, &key.key));
            let expired = row.filter(idempotency_keys::expires_at.le(0));
            // Takes the table lock that the insertion needs, which may keep all requests waiting.
            let locked = diesel::delete(expired).execute(conn).await;
            locked.map_err(|_| DieselError::RollbackTransaction)?;
            let row = KeyRow::new(key, 0);
            diesel::insert_into(idempotency_keys::table).values(row).execute(conn).await?;
            Err(DieselError::RollbackTransaction)
        })
        .await;
    tried.is_err_and(|error| is_lock_timeout(&error))
}

fn refusal(outcome: &str, answer: Option<String>, place: Option<i32>) -> Result<Acceptance, Error> {
    Ok(match outcome {
        outcomes::ANSWERED => Acceptance::Answered(answer.unwrap_or_default()),
        outcomes::BUSY => Acceptance::Busy,
        outcomes::KEY_REUSED => Acceptance::KeyReused,
        outcomes::ID_TAKEN => Acceptance::IdTaken,
        outcomes::EVENT_TAKEN => Acceptance::EventTaken(place.map(index).unwrap_or_default()),
        other => {
            let message = format!("the outcome of accepting is {other:?}");
            return Err(Error::new(ErrorKind::Internal, message));
        }
    })
}

fn number(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn index(number: i32) -> usize {
    usize::try_from(number).unwrap_or_default()
}
