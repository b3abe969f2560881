//! The error of every layer below HTTP.
//!
//! An [`Error`] states *what* went wrong ([`ErrorKind`]) and *whether a retry can help*
//! ([`RetryClass`]). It holds no HTTP type and no driver type: a backend translates its driver's
//! errors at the call, and `api::error` has the only table from kind to status. The message of a
//! request error may be shown to the client; that of an outage is only for the log, because it can
//! name an address.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc, time::Duration};

use strum::{IntoStaticStr, VariantArray};

/// The kind of an error, as a closed set: it is a metric label and a field of the health report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum ErrorKind {
    /// The backend's host name does not resolve.
    NameNotFound,
    /// Nothing listens at the backend's address.
    Refused,
    /// An established connection broke.
    Disconnected,
    /// No answer arrived in time.
    Timeout,
    /// The TLS handshake failed.
    Tls,
    /// The backend does not accept our credentials.
    Unauthenticated,
    /// The backend knows our identity and forbids the operation.
    Forbidden,
    /// The backend accepts no writes.
    ReadOnly,
    /// The backend, its schema or its data has a version that this program cannot use.
    Incompatible,
    /// The backend asks for fewer calls.
    Throttled,
    /// Another user of the backend blocked this call, which had no effect.
    Busy,
    /// The backend cannot serve for another reason, or was never reached.
    Unavailable,
    /// The requested object of the backend (namespace, database, stream) does not exist.
    Missing,
    /// The backend may or may not have completed the call: the answer was lost.
    OutcomeUnknown,
    /// Our own limit was reached.
    Overloaded,
    /// The circuit breaker refuses the call.
    CircuitOpen,
    /// The connection is closed, because the program is stopping.
    Closed,
    /// The caller's input is wrong.
    InvalidInput,
    /// The requested thing does not exist.
    NotFound,
    /// The id is already in use.
    AlreadyExists,
    /// The request conflicts with another that is still in progress.
    Conflict,
    /// The idempotency key was used with another body.
    KeyReused,
    /// The backend in use does not support the operation.
    Unsupported,
    /// A defect, or a state that should not exist.
    Internal,
}

impl ErrorKind {
    /// Every kind, for series that exist from the start.
    pub const ALL: [Self; Self::VARIANTS.len()] =
        *Self::VARIANTS.first_chunk().expect("an array has its own length");

    /// Stable name, as it appears in metrics, logs and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The remedy for most connections that fail in this way; an [`Error`] may have a more specific
    /// one, see [`Error::remedy`].
    const fn remedy(self) -> Option<&'static str> {
        Some(match self {
            Self::NameNotFound => {
                "check the host name in the configured address, which `config show` prints"
            }
            Self::Refused => {
                "check that the server runs at the configured address, which `config show` prints"
            }
            Self::Disconnected => {
                "check that the address is that of such a server, and whether it wants TLS"
            }
            Self::Timeout => {
                "check that the server runs, that no firewall drops the packets, and that the \
                 address is that of such a server"
            }
            Self::Tls => {
                "check that both sides want TLS, and that ca_file names the authority that signed \
                 the server's certificate"
            }
            Self::Unauthenticated => {
                "check user and password, or the key, in the configured address or its secret file"
            }
            Self::Forbidden => "give the user, or this process, the rights it needs",
            Self::ReadOnly => {
                "connect to the primary, make the server or the folder writable, or free space on \
                 its disk"
            }
            Self::Missing => "create it, or correct its name in the configuration",
            Self::Incompatible => {
                "update what is older, or correct the address if it leads to something else"
            }
            Self::Unavailable => {
                "look at the server's own log, and check that the address is that of such a server"
            }
            Self::Throttled => "raise the server's limits, or lower pool.max_size",
            Self::Busy => {
                "find the session that holds what others need, in PostgreSQL by pg_locks and \
                 pg_stat_activity, and end it"
            }
            _ => return None,
        })
    }

    /// True when the backend, the network or our own limits caused the error, not the request.
    #[must_use]
    pub const fn is_outage(self) -> bool {
        !matches!(
            self,
            Self::InvalidInput
                | Self::NotFound
                | Self::AlreadyExists
                | Self::Conflict
                | Self::KeyReused
                | Self::Unsupported
                | Self::Internal
        )
    }

    /// True when such an error shows that the backend, or the route to it, does not work. A refusal
    /// of this particular call does not show that, nor does interference by other calls, nor do the
    /// limits of either side.
    #[must_use]
    pub const fn blames_backend(self) -> bool {
        self.is_outage()
            && !self.is_own_limit()
            && !matches!(self, Self::Forbidden | Self::Busy | Self::Throttled)
    }

    /// True when the call never reached the backend, because one of our own limits stopped it.
    #[must_use]
    pub const fn is_own_limit(self) -> bool {
        matches!(self, Self::Overloaded | Self::CircuitOpen | Self::Closed)
    }

    /// True when the call is refused for its content, so that no further attempt can succeed. No
    /// other error makes a dead letter.
    #[must_use]
    pub const fn refuses_call(self) -> bool {
        matches!(self, Self::InvalidInput | Self::Unsupported)
    }

    const fn default_retry(self) -> RetryClass {
        match self {
            Self::NameNotFound
            | Self::Refused
            | Self::Unavailable
            | Self::Throttled
            | Self::Busy => RetryClass::NotSent,
            Self::Disconnected | Self::Timeout | Self::OutcomeUnknown => RetryClass::MaybeSent,
            _ => RetryClass::Never,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// States whether a later call can succeed, and the risk of repeating it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// The backend never received the call: repeating it is safe for every operation.
    NotSent,
    /// The backend may have completed the call: only an idempotent operation may be repeated.
    MaybeSent,
    /// Repeating it cannot help.
    Never,
}

/// An error with its kind, its retry class, the operation that failed and its cause.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: RetryClass,
    operation: Option<&'static str>,
    message: Cow<'static, str>,
    remedy: Option<&'static str>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Creates an error of `kind` with that kind's usual retry class.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: kind.default_retry(),
            operation: None,
            message: message.into(),
            remedy: None,
            retry_after: None,
            source: None,
        }))
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// Overrides the kind's usual remedy where that is unsuitable. It is shown to callers who may
    /// not see the message, so it names no address.
    #[must_use]
    pub fn with_remedy(mut self, remedy: &'static str) -> Self {
        self.0.remedy = Some(remedy);
        self
    }

    /// Overrides the kind's usual retry class.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryClass) -> Self {
        self.0.retry = retry;
        self
    }

    /// Marks the failed call as a read, which has no effect however it fails.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        if self.0.retry == RetryClass::MaybeSent {
            self.0.retry = RetryClass::NotSent;
        }
        self
    }

    /// Sets the time after which a retry makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Names the operation that failed, unless an inner layer has named it already.
    #[must_use]
    pub fn in_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// The kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// States whether repeating the call can help.
    #[must_use]
    pub fn retry(&self) -> RetryClass {
        self.0.retry
    }

    /// The time after which a retry makes sense, if known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The action that an operator can take, if there is one.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        self.0.remedy.or(self.0.kind.remedy())
    }

    /// The message without operation and cause.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// True when the call may have had its effect although it failed.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        self.0.retry == RetryClass::MaybeSent
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = self.0.operation {
            write!(f, "{operation}: ")?;
        }
        write!(f, "{}", self.0.message)?;
        let mut cause = self.0.source.as_deref().map(|source| source as &dyn StdError);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {self}", self.0.kind)
    }
}

// The text already includes the causes, so that a log line is complete; `source` returns `None`, so
// that no reporter prints them twice.
impl StdError for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_operation_message_and_every_cause() {
        let cause = std::io::Error::other("broken pipe");
        let error = Error::new(ErrorKind::Disconnected, "connection lost")
            .with_source(cause)
            .in_operation("publish")
            .in_operation("outer");
        assert_eq!(error.to_string(), "publish: connection lost: broken pipe");
        assert!(error.outcome_unknown());
    }

    #[test]
    fn an_error_with_its_own_remedy_does_not_give_that_of_its_kind() {
        let usual = Error::new(ErrorKind::Unavailable, "no answer");
        assert_eq!(usual.remedy(), ErrorKind::Unavailable.remedy());
        let own = usual.with_remedy("stop the other process").in_operation("connect");
        assert_eq!(own.remedy(), Some("stop the other process"));
        let incurable = Error::new(ErrorKind::NotFound, "no such thing");
        assert_eq!(incurable.remedy(), None);
    }
}
