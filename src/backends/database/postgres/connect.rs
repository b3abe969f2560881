//! Connections to `PostgreSQL`: login, TLS, and the meaning of failures.

use std::time::Duration;

use async_trait::async_trait;
use diesel_async::{
    AsyncPgConnection, SimpleAsyncConnection, pooled_connection::PoolableConnection,
};
use tokio_postgres::{config::SslMode, error::SqlState};

use super::{
    super::tls,
    config::{Config, Tls},
    dialect::Conn,
};
use crate::{
    backends::{
        login::{Credentials, Login},
        pool::Connect,
    },
    config::Secret,
    connection::BuildContext,
    error::{Error, ErrorKind, RetryClass},
};

/// Session settings. A process that is paused inside a transaction must not keep its locks, and a
/// request that waits for such a lock must not delay the requests that share its commit. A commit
/// must be durable, whatever the defaults of server, database or user.
pub(super) const SESSION: &str = "SET idle_in_transaction_session_timeout = '5s'; SET lock_timeout = '1s'; \
    SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') = 'off'";

/// The first version with identity columns.
const OLDEST_SERVER: u32 = 10;

/// The login and the address.
#[derive(Clone)]
struct Access {
    url: Secret,
    password: Option<Secret>,
    application: String,
    connect_timeout: Duration,
    tls: SslMode,
}

impl Credentials for Access {
    type Ready = tokio_postgres::Config;

    fn secrets(&mut self) -> Vec<&mut Secret> {
        std::iter::once(&mut self.url).chain(&mut self.password).collect()
    }

    fn ready(&self) -> Result<tokio_postgres::Config, Error> {
        // The parser's message can repeat parts of the URL, so it is not shown.
        let mut config: tokio_postgres::Config =
            self.url.expose().parse().map_err(|_| {
                Error::new(ErrorKind::Internal, "database.postgres.url cannot be read")
            })?;
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        config
            .application_name(&self.application)
            .connect_timeout(self.connect_timeout)
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            // A peer that acknowledges nothing for this long is gone, even while calls wait for it.
            .tcp_user_timeout(Duration::from_secs(15))
            .ssl_mode(self.tls);
        Ok(config)
    }
}

pub(super) struct Connector {
    login: Login<Access>,
    tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
    limit: Duration,
}

impl Connector {
    pub(super) fn new(config: &Config, context: &BuildContext) -> Result<Self, Error> {
        let connect_timeout = context.pool.connect_timeout;
        let access = Access {
            url: config.url.clone(),
            password: config.password.clone(),
            application: format!("agentarea-api {}", context.instance),
            connect_timeout,
            tls: match config.tls {
                Tls::Disable => SslMode::Disable,
                Tls::Prefer => SslMode::Prefer,
                Tls::Require | Tls::Verify => SslMode::Require,
            },
        };
        let tls = match config.tls {
            Tls::Disable => None,
            Tls::Prefer | Tls::Require => Some(tls::unverified()?),
            Tls::Verify => Some(tls::verified(config.ca_file.as_deref())?),
        };
        Ok(Self { login: Login::new(context.connection, access)?, tls, limit: connect_timeout })
    }

    async fn establish(&self, config: &tokio_postgres::Config) -> Result<Conn, Error> {
        let refused = |error| connect_error(config, error);
        let established = if let Some(tls) = &self.tls {
            let (client, conn) = config.connect(tls.clone()).await.map_err(refused)?;
            check_server(conn.parameter("server_version"))?;
            AsyncPgConnection::try_from_client_and_connection(client, conn).await
        } else {
            let (client, conn) = config.connect(tokio_postgres::NoTls).await.map_err(refused)?;
            check_server(conn.parameter("server_version"))?;
            AsyncPgConnection::try_from_client_and_connection(client, conn).await
        };
        let mut conn = established.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the session cannot be set up").with_source(error)
        })?;
        conn.batch_execute(SESSION).await?;
        Ok(conn)
    }
}

/// Refuses a server that is too old. A server that does not report its version, such as some
/// proxies, is accepted.
fn check_server(version: Option<&str>) -> Result<(), Error> {
    let version = version.unwrap_or_default();
    let major = version.split(|sign: char| !sign.is_ascii_digit()).next().unwrap_or_default();
    match major.parse::<u32>() {
        Ok(major) if major < OLDEST_SERVER => Err(Error::new(
            ErrorKind::Incompatible,
            format!("the server is version {version}, older than {OLDEST_SERVER}"),
        )),
        _ => Ok(()),
    }
}

/// The error for a failed connect, with a remedy.
fn connect_error(config: &tokio_postgres::Config, error: tokio_postgres::Error) -> Error {
    let database = config.get_dbname().unwrap_or("postgres");
    let (kind, message) = match error.code() {
        Some(code) => match *code {
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                (ErrorKind::Unauthenticated, "the database refuses user or password".to_owned())
            }
            SqlState::INVALID_CATALOG_NAME => {
                (ErrorKind::Missing, format!("the database {database:?} does not exist; create it"))
            }
            SqlState::INSUFFICIENT_PRIVILEGE => {
                (ErrorKind::Forbidden, "the user may not connect".to_owned())
            }
            SqlState::TOO_MANY_CONNECTIONS => (
                ErrorKind::Throttled,
                "the database has no connection slots left; lower pool.max_size".to_owned(),
            ),
            _ => (ErrorKind::Unavailable, "the database does not accept us".to_owned()),
        },
        None => (transport_kind(&error), "the database cannot be reached".to_owned()),
    };
    Error::new(kind, message).with_retry(RetryClass::NotSent).with_source(error)
}

fn transport_kind(error: &tokio_postgres::Error) -> ErrorKind {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => {
                    ErrorKind::Refused
                }
                std::io::ErrorKind::TimedOut => ErrorKind::Timeout,
                std::io::ErrorKind::InvalidData => ErrorKind::Tls,
                std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::ConnectionAborted
                | std::io::ErrorKind::UnexpectedEof
                | std::io::ErrorKind::BrokenPipe => ErrorKind::Disconnected,
                // The driver has no kind for a name that does not resolve.
                _ if io.to_string().contains("lookup") => ErrorKind::NameNotFound,
                _ => ErrorKind::Unavailable,
            };
        }
        cause = inner.source();
    }
    if error.to_string().contains("TLS") { ErrorKind::Tls } else { ErrorKind::Unavailable }
}

#[async_trait]
impl Connect for Connector {
    type Conn = Conn;

    async fn connect(&self) -> Result<Conn, Error> {
        let connecting = self.login.connect(async |config| self.establish(&config).await);
        tokio::time::timeout(self.limit, connecting).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "no connection within pool.connect_timeout")
                .with_retry(RetryClass::NotSent))
        })
    }

    fn is_broken(conn: &mut Conn) -> bool {
        PoolableConnection::is_broken(conn)
    }

    async fn check(&self, conn: &mut Conn) -> Result<(), Error> {
        Ok(conn.batch_execute("SELECT 1").await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_refused_by_its_version() {
        for version in ["9.6.24", "9.5beta1", "8.4"] {
            let error = check_server(Some(version)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            assert!(error.to_string().contains(&format!("{version}, older than 10")), "{error}");
        }
        for version in ["10.23", "15.14 (Debian 15.14-0+deb12u1)", "18beta2", "CockroachDB", ""] {
            assert!(check_server(Some(version)).is_ok(), "{version}");
        }
        assert!(check_server(None).is_ok());
    }
}
