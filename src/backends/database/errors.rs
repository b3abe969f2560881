//! What failures of a database mean.

use diesel::result::{DatabaseErrorKind, Error as DieselError};

use crate::error::{Error, ErrorKind, RetryClass};

/// What a failed statement means.
pub(super) fn query_error(error: DieselError) -> Error {
    let mut message = "the statement failed";
    let kind = match &error {
        DieselError::DatabaseError(kind, information) => match kind {
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                ErrorKind::Disconnected
            }
            DatabaseErrorKind::ReadOnlyTransaction => ErrorKind::ReadOnly,
            DatabaseErrorKind::SerializationFailure => ErrorKind::Throttled,
            _ if accepts_no_writes(information.message()) => ErrorKind::ReadOnly,
            _ if information.message().contains("terminating connection") => {
                ErrorKind::Disconnected
            }
            _ if information.message().starts_with("permission denied") => ErrorKind::Forbidden,
            _ if information.message().ends_with("due to lock timeout") => {
                message = "another transaction, which has not ended, holds what this one needs";
                ErrorKind::Conflict
            }
            _ => ErrorKind::Unavailable,
        },
        // Our own `Queryable`s and the schema do not agree.
        DieselError::DeserializationError(_) | DieselError::SerializationError(_) => {
            ErrorKind::Incompatible
        }
        DieselError::BrokenTransactionManager => ErrorKind::Disconnected,
        _ => ErrorKind::Unavailable,
    };
    // The statement reached the database, so what it did is unknown unless the kind says better.
    let error = Error::new(kind, message).with_source(error);
    if kind == ErrorKind::Unavailable { error.with_retry(RetryClass::MaybeSent) } else { error }
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

    #[test]
    fn only_an_older_program_is_refused() {
        assert!(check_version(env!("CARGO_PKG_VERSION")).is_ok());
        assert!(check_version("0.0.9").is_ok());
        let error = check_version("999.0.0").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(version("0.10.0") > version("0.9.9"));
    }
}
