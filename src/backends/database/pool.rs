//! The pool of both databases, and what its errors mean.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use deadpool::managed::{self, Metrics, RecycleError, RecycleResult, TimeoutType};
use diesel::result::{DatabaseErrorKind, Error as DieselError};
use diesel_async::pooled_connection::PoolableConnection;
use rand::Rng;

use crate::{
    config,
    connection::PoolStatus,
    error::{Error, ErrorKind, RetryClass},
    telemetry::metrics::ConnectionMetrics,
};

/// Opens connections of one database.
#[async_trait]
pub(super) trait Connect: Send + Sync + 'static {
    type Conn: PoolableConnection + Send + 'static;

    async fn connect(&self) -> Result<Self::Conn, Error>;
}

/// What deadpool asks of a pool's owner.
pub(super) struct Manager<C> {
    connect: Arc<C>,
    max_lifetime: Duration,
}

/// A pooled connection and the age at which it is replaced.
pub(super) struct Pooled<T> {
    conn: T,
    max_age: Option<Duration>,
}

impl<C: Connect> managed::Manager for Manager<C> {
    type Type = Pooled<C::Conn>;
    type Error = Error;

    async fn create(&self) -> Result<Self::Type, Error> {
        // Each lives up to a tenth shorter than the others, so that not all are replaced at once.
        let jitter = rand::rng().random_range(0.9..=1.0);
        let max_age = (!self.max_lifetime.is_zero()).then(|| self.max_lifetime.mul_f64(jitter));
        Ok(Pooled { conn: self.connect.connect().await?, max_age })
    }

    async fn recycle(&self, pooled: &mut Self::Type, metrics: &Metrics) -> RecycleResult<Error> {
        if pooled.max_age.is_some_and(|max_age| metrics.age() > max_age) {
            return Err(RecycleError::message("it reached its maximum lifetime"));
        }
        // A future dropped inside a transaction leaves its connection broken.
        if pooled.conn.is_broken() {
            return Err(RecycleError::message("it is broken"));
        }
        Ok(())
    }
}

/// A checked-out connection.
pub(super) struct Checkout<C: Connect>(managed::Object<Manager<C>>);

impl<C: Connect> std::ops::Deref for Checkout<C> {
    type Target = C::Conn;

    fn deref(&self) -> &C::Conn {
        &self.0.conn
    }
}

impl<C: Connect> std::ops::DerefMut for Checkout<C> {
    fn deref_mut(&mut self) -> &mut C::Conn {
        &mut self.0.conn
    }
}

/// A pool that counts how long its callers wait.
pub(super) struct Pool<C: Connect> {
    pool: managed::Pool<Manager<C>>,
    metrics: ConnectionMetrics,
}

impl<C: Connect> Pool<C> {
    pub(super) fn new(
        connect: Arc<C>,
        config: &config::Pool,
        metrics: ConnectionMetrics,
    ) -> Result<Self, Error> {
        let manager = Manager { connect, max_lifetime: config.max_lifetime };
        let pool = managed::Pool::builder(manager)
            .max_size(config.max_size)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(config.acquire_timeout))
            .create_timeout(Some(config.connect_timeout))
            .recycle_timeout(Some(config.acquire_timeout))
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "the pool cannot be set up").with_source(error)
            })?;
        Ok(Self { pool, metrics })
    }

    pub(super) async fn get(&self) -> Result<Checkout<C>, Error> {
        let begin = tokio::time::Instant::now();
        let taken = self.pool.get().await;
        self.metrics.acquire_wait.observe(begin.elapsed().as_secs_f64());
        taken.map(Checkout).map_err(pool_error)
    }

    pub(super) fn status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus {
            max: status.max_size,
            in_use: status.size.saturating_sub(status.available),
            idle: status.available,
            waiting: status.waiting,
        }
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }
}

fn pool_error(error: managed::PoolError<Error>) -> Error {
    match error {
        managed::PoolError::Backend(error) => error,
        // Our own limit: the backend never saw the call, and is not to blame.
        managed::PoolError::Timeout(TimeoutType::Wait) => Error::new(
            ErrorKind::Overloaded,
            "no pooled connection became free within pool.acquire_timeout",
        ),
        managed::PoolError::Timeout(_) => {
            Error::new(ErrorKind::Timeout, "no connection within pool.connect_timeout")
                .with_retry(RetryClass::NotSent)
        }
        managed::PoolError::Closed => Error::new(ErrorKind::Closed, "the pool is closed"),
        other => Error::new(ErrorKind::Unavailable, "no pooled connection").with_source(other),
    }
}

/// What a failed statement means.
pub(super) fn query_error(error: DieselError) -> Error {
    let kind = match &error {
        DieselError::DatabaseError(kind, information) => match kind {
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                ErrorKind::Disconnected
            }
            DatabaseErrorKind::ReadOnlyTransaction => ErrorKind::ReadOnly,
            DatabaseErrorKind::SerializationFailure => ErrorKind::Throttled,
            _ if information.message().contains("readonly database") => ErrorKind::ReadOnly,
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
    let error = Error::new(kind, "the statement failed").with_source(error);
    if kind == ErrorKind::Unavailable { error.with_retry(RetryClass::MaybeSent) } else { error }
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
