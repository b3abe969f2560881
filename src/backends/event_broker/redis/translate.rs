//! Translates the driver's errors.

use std::{error::Error as StdError, io::ErrorKind as IoErrorKind, sync::Arc};

use redis::{ErrorKind as RedisErrorKind, RedisError, ServerError};

use crate::error::{Error, ErrorKind, RetryClass};

/// Marks the error of an attempt to connect, before which no command was sent.
pub(super) fn unsent(error: Error) -> Error {
    if error.outcome_unknown() { error.with_retry(RetryClass::NotSent) } else { error }
}

/// True when the connection is no longer usable: it broke, or another server holds the stream now,
/// or must be found.
pub(super) fn leads_nowhere(error: &RedisError) -> bool {
    const ELSEWHERE: [&str; 4] = ["READONLY", "MOVED", "ASK", "CLUSTERDOWN"];
    error.is_unrecoverable_error()
        || error.is_io_error()
        || refusal(error).is_some_and(|refusal| ELSEWHERE.contains(&refusal.code()))
        || error.code().is_some_and(|code| ELSEWHERE.contains(&code))
}

/// Returns the server's own answer; for a batch, its first refusal.
fn refusal(error: &RedisError) -> Option<ServerError> {
    error.clone().into_server_errors()?.first().map(|(_, refusal)| refusal.clone())
}

/// Translates an error of the driver.
pub(super) fn translate(error: &RedisError) -> Error {
    if let Some(refusal) = refusal(error) {
        return refused(refusal.code(), refusal.details().unwrap_or_default());
    }
    let (kind, retry, what) = match error.kind() {
        RedisErrorKind::Io => return broken(error),
        // The selection of the database failed on connecting; only the text of the error remains.
        RedisErrorKind::Server(_) => {
            return refused(error.code().unwrap_or_default(), error.detail().unwrap_or_default());
        }
        RedisErrorKind::AuthenticationFailed => {
            (ErrorKind::Unauthenticated, RetryClass::Never, "the server refused the login")
        }
        RedisErrorKind::RESP3NotSupported => {
            (ErrorKind::Incompatible, RetryClass::Never, "the server does not speak RESP3")
        }
        RedisErrorKind::Parse => (
            ErrorKind::Incompatible,
            RetryClass::MaybeSent,
            "the server's answer is not in the language of Redis",
        ),
        RedisErrorKind::InvalidClientConfig if error.to_string().contains("No address found") => {
            (ErrorKind::NameNotFound, RetryClass::NotSent, "the host has no address")
        }
        _ if cause::<rustls::Error>(error).is_some() => {
            (ErrorKind::Tls, RetryClass::Never, "TLS cannot be set up")
        }
        _ => (ErrorKind::Internal, RetryClass::MaybeSent, "an unexpected answer"),
    };
    Error::new(kind, format!("{what}: {error}")).with_retry(retry)
}

/// Translates an error that the server returned. The command had no effect in that case.
fn refused(code: &str, details: &str) -> Error {
    let says = |text: &str| code == "ERR" && details.contains(text);
    let (kind, what) = match code {
        "NOAUTH" | "WRONGPASS" => (ErrorKind::Unauthenticated, "the server wants another login"),
        "NOPERM" => (ErrorKind::Forbidden, "the server forbids it"),
        "READONLY" => (ErrorKind::ReadOnly, "the server is a replica, which takes no writes"),
        "MOVED" | "ASK" => (ErrorKind::Unavailable, "the stream is on another node of the cluster"),
        "WRONGTYPE" => (ErrorKind::Incompatible, "the key of the stream holds something else"),
        "NOPROTO" => (ErrorKind::Incompatible, "the server does not speak RESP3"),
        _ if says("Authentication required") => {
            (ErrorKind::Unauthenticated, "the server wants a login")
        }
        _ if says("no permissions") => (ErrorKind::Forbidden, "the server forbids it"),
        _ if says("unknown command") => {
            (ErrorKind::Incompatible, "the server is too old or limited")
        }
        _ if says("no such key") => (ErrorKind::Missing, "there is no such key"),
        _ if says("DB index") => (ErrorKind::Missing, "there is no such database"),
        _ => (ErrorKind::Unavailable, "the server cannot serve now"),
    };
    let error = Error::new(kind, format!("{what}: {code} {details}"));
    let error = match remedy(code, details) {
        Some(remedy) => error.with_remedy(remedy),
        None => error,
    };
    // After a failover, the next attempt looks for the primary.
    if kind == ErrorKind::ReadOnly { error.with_retry(RetryClass::NotSent) } else { error }
}

/// The remedy for an answer to which the remedy of its kind does not apply.
fn remedy(code: &str, details: &str) -> Option<&'static str> {
    Some(match code {
        "MOVED" | "ASK" => "set event_broker.redis.mode = \"cluster\"",
        "OOM" => "raise maxmemory of the server, or lower event_broker.redis.max_events",
        "LOADING" => "wait until the server has loaded its data",
        "WRONGTYPE" => "choose another event_broker.redis.stream",
        "ERR" if details.contains("DB index") => {
            "correct the number of the database at the end of the URL"
        }
        "ERR" if details.contains("max number of clients") => {
            "raise maxclients of the server, or lower pool.max_size"
        }
        _ => return None,
    })
}

/// Translates a failure of the link.
fn broken(error: &RedisError) -> Error {
    let text = error.to_string();
    let io = cause::<std::io::Error>(error);
    let of_tls = io
        .and_then(|io| io.get_ref())
        .is_some_and(<dyn StdError + Send + Sync>::is::<rustls::Error>);
    let (kind, retry, what) = match io.map(std::io::Error::kind) {
        _ if of_tls || text.contains("tls handshake") => {
            (ErrorKind::Tls, RetryClass::MaybeSent, "TLS failed")
        }
        _ if text.contains("failed to lookup address") => {
            (ErrorKind::NameNotFound, RetryClass::NotSent, "the host's name does not resolve")
        }
        // A socket that does not exist counts as refused as well.
        Some(IoErrorKind::ConnectionRefused | IoErrorKind::NotFound) => {
            (ErrorKind::Refused, RetryClass::NotSent, "nothing listens at the address")
        }
        Some(IoErrorKind::TimedOut) => {
            (ErrorKind::Timeout, RetryClass::MaybeSent, "no answer in time")
        }
        Some(IoErrorKind::PermissionDenied) => {
            (ErrorKind::Forbidden, RetryClass::Never, "the socket may not be opened")
        }
        _ => (ErrorKind::Disconnected, RetryClass::MaybeSent, "the connection broke"),
    };
    Error::new(kind, format!("{what}: {text}")).with_retry(retry)
}

/// Returns the error inside a driver's error.
fn cause<E: StdError + 'static>(error: &RedisError) -> Option<&E> {
    error.source()?.downcast_ref::<Arc<dyn StdError + Send + Sync>>()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Error {
        let answer = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap();
        translate(&answer.extract_error().unwrap_err())
    }

    #[test]
    fn a_refusal_is_classified_by_its_code() {
        for (text, kind, retry) in [
            ("NOAUTH Authentication required.", ErrorKind::Unauthenticated, RetryClass::Never),
            (
                "WRONGPASS invalid username-password pair",
                ErrorKind::Unauthenticated,
                RetryClass::Never,
            ),
            ("NOPERM this user has no permissions", ErrorKind::Forbidden, RetryClass::Never),
            ("READONLY You can't write", ErrorKind::ReadOnly, RetryClass::NotSent),
            ("LOADING Redis is loading", ErrorKind::Unavailable, RetryClass::NotSent),
            ("BUSY Redis is busy", ErrorKind::Unavailable, RetryClass::NotSent),
            ("MASTERDOWN Link is down", ErrorKind::Unavailable, RetryClass::NotSent),
            ("CLUSTERDOWN Hash slot not served", ErrorKind::Unavailable, RetryClass::NotSent),
            ("OOM command not allowed", ErrorKind::Unavailable, RetryClass::NotSent),
            ("MISCONF cannot persist", ErrorKind::Unavailable, RetryClass::NotSent),
            ("MOVED 1 10.0.0.1:6379", ErrorKind::Unavailable, RetryClass::NotSent),
            ("WRONGTYPE Operation against a key", ErrorKind::Incompatible, RetryClass::Never),
            ("ERR unknown command 'XADD'", ErrorKind::Incompatible, RetryClass::Never),
            ("ERR no such key", ErrorKind::Missing, RetryClass::Never),
            ("ERR max number of clients reached", ErrorKind::Unavailable, RetryClass::NotSent),
        ] {
            let error = answer(text);
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{text}");
        }
    }

    #[test]
    fn the_remedy_fits_the_answer() {
        for (text, remedy) in [
            ("MOVED 1 10.0.0.1:6379", "mode = \"cluster\""),
            ("OOM command not allowed", "raise maxmemory"),
            ("LOADING Redis is loading", "wait until"),
            ("WRONGTYPE Operation against a key", "choose another event_broker.redis.stream"),
            ("ERR DB index is out of range", "the number of the database"),
            ("ERR max number of clients reached", "raise maxclients"),
            ("MISCONF cannot persist", "look at the server's own log"),
        ] {
            let told = answer(text).remedy().unwrap();
            assert!(told.contains(remedy), "{text}: {told}");
        }
    }

    #[test]
    fn a_failure_of_the_link_may_have_come_after_the_command() {
        use std::io;
        for (io, kind, retry) in [
            (IoErrorKind::ConnectionRefused, ErrorKind::Refused, RetryClass::NotSent),
            (IoErrorKind::BrokenPipe, ErrorKind::Disconnected, RetryClass::MaybeSent),
            (IoErrorKind::ConnectionReset, ErrorKind::Disconnected, RetryClass::MaybeSent),
            (IoErrorKind::UnexpectedEof, ErrorKind::Disconnected, RetryClass::MaybeSent),
            (IoErrorKind::TimedOut, ErrorKind::Timeout, RetryClass::MaybeSent),
        ] {
            let error = translate(&RedisError::from(io::Error::from(io)));
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{io}");
        }
        let inside = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let error = io::Error::new(IoErrorKind::InvalidData, inside);
        assert_eq!(translate(&RedisError::from(error)).kind(), ErrorKind::Tls);
        let unsent = unsent(translate(&RedisError::from(io::Error::from(IoErrorKind::TimedOut))));
        assert_eq!(unsent.retry(), RetryClass::NotSent);
    }
}
