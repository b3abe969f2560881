//! Finds the server that holds the stream: configured, named by sentinels, or found in a cluster.
//!
//! A connection is always to one server. When it no longer leads to the stream it is forgotten, and
//! the next one repeats the search. So failovers and moved slots are handled like a lost
//! connection, and only the guard repeats calls: the driver's own clients for sentinels and
//! clusters redirect and repeat beneath it, and one of them cannot lift the time limit of answers
//! for a blocking read.

use std::{fmt, fs, time::Duration};

use deadpool::managed::{Manager as _, Metrics, RecycleError};
use deadpool_redis::Manager;
use futures_util::{StreamExt, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, TlsCertificates,
    aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::time::timeout;

use super::{
    config::{Config, Mode, host_and_port},
    translate::{translate, unsent},
};
use crate::{
    backends::login::Credentials,
    config::Secret,
    error::{Error, ErrorKind, RetryClass},
    tls,
};

/// The login and the connection settings for the servers.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) config: Config,
    pub(super) connect_timeout: Duration,
}

impl Credentials for Access {
    type Ready = Servers;

    fn secrets(&mut self) -> Vec<&mut Secret> {
        let config = &mut self.config;
        let passwords = config.password.iter_mut().chain(&mut config.sentinel_password);
        std::iter::once(&mut config.url).chain(passwords).collect()
    }

    fn ready(&self) -> Result<Servers, Error> {
        let first = self.config.server()?;
        let mut entries = vec![first.addr().clone()];
        entries.extend(self.config.nodes.iter().filter_map(|node| {
            let (host, port) = host_and_port(node)?;
            Some(like(first.addr(), host, port))
        }));
        Ok(Servers {
            search: Search::of(&self.config),
            entries,
            server: first,
            connect_timeout: self.connect_timeout,
        })
    }
}

impl Config {
    /// Returns the server at `url`, with its login.
    fn server(&self) -> Result<ConnectionInfo, Error> {
        let info = self.url.expose().into_connection_info().map_err(|_| {
            Error::new(ErrorKind::Internal, "the url cannot be read, which its check rules out")
        })?;
        let mut login = named(info.redis_settings().clone());
        if let Some(password) = &self.password {
            login = login.set_password(password.expose());
        }
        // Keeps idle connections alive through routers that drop them, and detects a dead peer.
        let keepalive = redis::io::tcp::socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5));
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        // A peer that acknowledges nothing for this time is gone, whatever call waits for it.
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(Duration::from_secs(15));
        self.with_authorities(info.set_redis_settings(login).set_tcp_settings(tcp))
    }

    fn with_authorities(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Error> {
        tls::install_provider();
        let Some(path) = &self.ca_file else { return Ok(info) };
        let unusable = |error: &dyn fmt::Display| {
            let message = format!("ca_file {} cannot be used: {error}", path.display());
            Error::new(ErrorKind::Tls, message)
        };
        // The driver accepts a file without certificates, and then refuses every server.
        tls::certificates(path)
            .map_err(|error| Error::new(ErrorKind::Tls, format!("ca_file {error}")))?;
        let root_cert = Some(fs::read(path).map_err(|error| unusable(&error))?);
        let certificates = TlsCertificates { client_tls: None, root_cert };
        let client =
            Client::build_with_tls(info, certificates).map_err(|error| unusable(&error))?;
        Ok(client.get_connection_info().clone())
    }

    fn sentinel_login(&self) -> RedisConnectionInfo {
        let mut login = named(RedisConnectionInfo::default());
        if let Some(user) = &self.sentinel_user {
            login = login.set_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            login = login.set_password(password.expose());
        }
        login
    }
}

fn named(login: RedisConnectionInfo) -> RedisConnectionInfo {
    login.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
}

/// Returns another address, reached in the same way as `known`.
fn like(known: &ConnectionAddr, host: &str, port: u16) -> ConnectionAddr {
    match known {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.to_owned(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    }
}

/// Connects to the server that holds the stream now.
pub(super) struct Servers {
    search: Search,
    /// The entries at which the search begins; any one that answers is enough.
    entries: Vec<ConnectionAddr>,
    /// The settings of the connection to the server; its address is that of the first entry.
    server: ConnectionInfo,
    connect_timeout: Duration,
}

/// The question to an entry.
enum Search {
    /// None, because the entry is the server.
    None,
    /// The address of the primary.
    Sentinel { master_name: String, login: RedisConnectionInfo },
    /// The owner of the key.
    Cluster { key: String },
}

impl Search {
    fn of(config: &Config) -> Self {
        match config.mode {
            Mode::Standalone => Self::None,
            Mode::Sentinel => Self::Sentinel {
                master_name: config.master_name.clone(),
                login: config.sentinel_login(),
            },
            Mode::Cluster => Self::Cluster { key: config.stream.clone() },
        }
    }
}

impl Servers {
    /// Connects to the server that holds the stream, querying all entries concurrently.
    ///
    /// # Errors
    /// If no entry leads to it: the refusal of one of them, or else that none can be reached. No
    /// command has been sent by then.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let search = timeout(self.connect_timeout, self.search()).await;
        search
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer in time")))
            .map_err(unsent)
    }

    async fn search(&self) -> Result<MultiplexedConnection, Error> {
        let mut ways: FuturesUnordered<_> =
            self.entries.iter().map(|entry| self.through(entry)).collect();
        let mut failure = None;
        while let Some(way) = ways.next().await {
            match way {
                Ok(connection) => return Ok(connection),
                // An answer is more specific than the silence of entries that are down.
                Err(error) if failure.is_none() || error.retry() == RetryClass::Never => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(|| Error::new(ErrorKind::Internal, "there is no address")))
    }

    async fn through(&self, entry: &ConnectionAddr) -> Result<MultiplexedConnection, Error> {
        match &self.search {
            Search::None => self.open(entry.clone()).await,
            Search::Sentinel { master_name, login } => {
                let sentinel = self.server.clone().set_redis_settings(login.clone());
                let mut sentinel = self.create(sentinel.set_addr(entry.clone())).await?;
                let primary = ask_for_primary(&mut sentinel, master_name).await?;
                let mut primary = self.open(like(entry, &primary.0, primary.1)).await?;
                check_role(&mut primary).await?;
                Ok(primary)
            }
            Search::Cluster { key } => {
                let mut node = self.open(entry.clone()).await?;
                let Some(owner) = redirection(&mut node, key, entry).await? else {
                    return Ok(node);
                };
                let mut node = self.open(owner).await?;
                match redirection(&mut node, key, entry).await? {
                    None => Ok(node),
                    // The nodes do not agree yet; the next attempt repeats the search.
                    Some(_) => Err(Error::new(ErrorKind::Unavailable, "the stream is moving")),
                }
            }
        }
    }

    async fn open(&self, address: ConnectionAddr) -> Result<MultiplexedConnection, Error> {
        self.create(self.server.clone().set_addr(address)).await
    }

    async fn create(&self, info: ConnectionInfo) -> Result<MultiplexedConnection, Error> {
        self.manager(info)?.create().await.map_err(|error| translate(&error))
    }

    fn manager(&self, info: ConnectionInfo) -> Result<Manager, Error> {
        // The default abandons every answer after half a second. The guard bounds calls, and
        // blocking reads bound themselves.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(None);
        Manager::new_with_config(info, settings).map_err(|error| translate(&error))
    }

    /// Checks that a connection still answers.
    pub(super) async fn check(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let manager = self.manager(self.server.clone())?;
        manager.recycle(connection, &Metrics::default()).await.map_err(|error| match error {
            RecycleError::Backend(error) => translate(&error),
            RecycleError::Message(message) => Error::new(ErrorKind::Disconnected, message),
        })
    }
}

async fn ask_for_primary(
    sentinel: &mut MultiplexedConnection,
    master_name: &str,
) -> Result<(String, u16), Error> {
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(master_name);
    let primary: Option<(String, u16)> =
        ask(sentinel, &question).await.map_err(|e| translate(&e))?;
    primary.ok_or_else(|| {
        let message = format!("the sentinels know no primary named {master_name:?} (master_name)");
        Error::new(ErrorKind::Missing, message).with_remedy(
            "correct event_broker.redis.master_name, or the addresses of the sentinels",
        )
    })
}

/// Checks that a server considers itself the primary. A sentinel that was cut off names the old
/// one, and the new one may not know its role for a moment.
async fn check_role(primary: &mut MultiplexedConnection) -> Result<(), Error> {
    let answer: Vec<redis::Value> =
        ask(primary, &redis::cmd("ROLE")).await.map_err(|e| translate(&e))?;
    let role = answer.into_iter().next().map(redis::from_redis_value::<String>);
    if matches!(role, Some(Ok(role)) if role == "master") {
        return Ok(());
    }
    let message = "the server that the sentinels name is a replica, which takes no writes";
    let remedy = "wait until the failover has ended; if it does not, look at the sentinels' logs";
    Err(Error::new(ErrorKind::Unavailable, message).with_remedy(remedy))
}

/// Returns the node that serves the key, if `node` does not.
async fn redirection(
    node: &mut MultiplexedConnection,
    key: &str,
    entry: &ConnectionAddr,
) -> Result<Option<ConnectionAddr>, Error> {
    let mut question = redis::cmd("TYPE");
    question.arg(key);
    let Err(error) = ask::<String>(node, &question).await else { return Ok(None) };
    let Some((address, _slot)) = error.redirect_node() else { return Err(translate(&error)) };
    let Some((host, port)) = host_and_port(address) else { return Err(translate(&error)) };
    // A node that does not know its own name omits it.
    let host = if host.is_empty() { host_of(entry) } else { host };
    Ok(Some(like(entry, host, port)))
}

fn host_of(address: &ConnectionAddr) -> &str {
    match address {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}

async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    question: &Cmd,
) -> Result<T, RedisError> {
    question.query_async(connection).await
}
