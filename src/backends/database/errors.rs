//! Translates database failures into errors.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{Error, ErrorKind, RetryClass};

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        translate(error)
    }
}

/// The error for a failed statement.
fn translate(error: DieselError) -> Error {
    let failed = |kind| (kind, "the statement failed");
    let (kind, message) = match &error {
        DieselError::DatabaseError(kind, information) => match kind {
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                failed(ErrorKind::Disconnected)
            }
            DatabaseErrorKind::ReadOnlyTransaction => failed(ErrorKind::ReadOnly),
            DatabaseErrorKind::SerializationFailure => (ErrorKind::Busy, IN_THE_WAY),
            _ => said(information.message()).unwrap_or(failed(ErrorKind::Unavailable)),
        },
        // Our own `Queryable`s and the schema do not agree.
        DieselError::DeserializationError(_) | DieselError::SerializationError(_) => {
            failed(ErrorKind::Incompatible)
        }
        DieselError::BrokenTransactionManager => failed(ErrorKind::Disconnected),
        _ => failed(ErrorKind::Unavailable),
    };
    // The statement reached the database, so its outcome is unknown unless the kind rules that out.
    let error = Error::new(kind, message).with_source(error);
    let error = match message {
        DAMAGED => error.with_remedy("restore the file from a backup"),
        CANCELLED => error.with_remedy("find who calls pg_cancel_backend on our sessions"),
        TOO_SLOW => error.with_remedy("raise statement_timeout of the user or of the database"),
        _ => error,
    };
    match kind {
        ErrorKind::Unavailable => error.with_retry(RetryClass::MaybeSent),
        // The server itself reports that it gave up.
        ErrorKind::Timeout => error.with_retry(RetryClass::NotSent),
        _ => error,
    }
}

const CANCELLED: &str = "somebody has cancelled the statement";
const DAMAGED: &str = "the file is damaged; restore it from a backup";
const TOO_SLOW: &str = "the statement took longer than the server's statement_timeout";
const IN_THE_WAY: &str = "another transaction stood in the way of this one";
const LOCKED: &str = "another transaction, which has not ended, holds a lock that this one needs";

/// The kind of an error by its text, where the driver has no kind for it.
fn said(text: &str) -> Option<(ErrorKind, &'static str)> {
    let failed = "the statement failed";
    Some(match text {
        _ if accepts_no_writes(text) => (ErrorKind::ReadOnly, failed),
        _ if text.contains("terminating connection") => (ErrorKind::Disconnected, failed),
        _ if text.starts_with("permission denied") => (ErrorKind::Forbidden, failed),
        _ if gave_up_waiting(text) => (ErrorKind::Busy, LOCKED),
        "database disk image is malformed" | "file is not a database" => {
            (ErrorKind::Unavailable, DAMAGED)
        }
        "deadlock detected" => (ErrorKind::Busy, IN_THE_WAY),
        "canceling statement due to user request" => (ErrorKind::Busy, CANCELLED),
        "canceling statement due to statement timeout" => (ErrorKind::Timeout, TOO_SLOW),
        _ => return None,
    })
}

/// True for the message of `PostgreSQL` after `lock_timeout`, or of `SQLite` after `busy_timeout`.
fn gave_up_waiting(text: &str) -> bool {
    let sqlite = text.starts_with("database ") && text.contains("is locked");
    text.ends_with("due to lock timeout") || text.starts_with("could not obtain lock") || sqlite
}

/// True when a statement timed out waiting for a lock of another transaction.
pub(super) fn is_lock_timeout(error: &DieselError) -> bool {
    matches!(error, DieselError::DatabaseError(_, said) if gave_up_waiting(said.message()))
}

/// `SQLite`'s file is not writable, or the disk of either database is full. Nothing was stored.
fn accepts_no_writes(message: &str) -> bool {
    ["readonly database", "disk is full", "No space left on device"]
        .iter()
        .any(|sign| message.contains(sign))
}

pub(super) fn migration_error(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the migrations failed: {error}"))
}

/// Compares the program's version with the oldest that the schema allows.
pub(super) fn check_version(oldest: &str) -> Result<(), Error> {
    let ours = env!("CARGO_PKG_VERSION");
    if version(ours) < version(oldest) {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!(
                "the database needs agentarea-api {oldest} or newer, this is {ours}; deploy a newer \
                 version, or restore a backup from before the upgrade"
            ),
        ));
    }
    Ok(())
}

fn version(text: &str) -> Vec<u64> {
    text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: DatabaseErrorKind, text: &str) -> Error {
        translate(DieselError::DatabaseError(kind, Box::new(text.to_owned())))
    }

    #[test]
    fn lock_timeouts_have_no_effect_and_blame_neither_side() {
        let others = DatabaseErrorKind::Unknown;
        for (kind, text) in [
            (others, "canceling statement due to lock timeout"),
            (others, "could not obtain lock on row in relation \"outbox\""),
            (others, "deadlock detected"),
            (others, "canceling statement due to user request"),
            (others, "database is locked"),
            (others, "database table is locked: outbox"),
            (DatabaseErrorKind::SerializationFailure, "could not serialize access"),
        ] {
            let error = failed(kind, text);
            assert_eq!(error.kind(), ErrorKind::Busy, "{text}");
            assert_eq!(error.retry(), RetryClass::NotSent, "{text}");
            assert!(error.kind().is_outage() && !error.kind().blames_backend(), "{text}");
        }
        let error = failed(others, "canceling statement due to statement timeout");
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, RetryClass::NotSent));
        let error = failed(others, "something else");
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, RetryClass::MaybeSent));
    }

    #[test]
    fn the_remedy_fits_what_the_database_says() {
        for (text, remedy) in [
            ("canceling statement due to statement timeout", "raise statement_timeout"),
            ("canceling statement due to user request", "pg_cancel_backend"),
            ("canceling statement due to lock timeout", "pg_locks"),
            ("database disk image is malformed", "restore the file"),
            ("something else", "look at the server's own log"),
        ] {
            let told = failed(DatabaseErrorKind::Unknown, text).remedy().unwrap();
            assert!(told.contains(remedy), "{text}: {told}");
        }
    }

    #[test]
    fn only_an_older_program_is_refused() {
        assert!(check_version(env!("CARGO_PKG_VERSION")).is_ok());
        assert!(check_version("0.0.9").is_ok());
        let error = check_version("999.0.0").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(version("0.10.0") > version("0.9.9"));
    }
}
