//! The settings of a Temporal server, and the only code that connects to it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use temporalio_client::{
    ClientKeepAliveOptions, ClientTlsOptions, Connection, ConnectionOptions, GrpcCompression,
    RetryOptions, TlsOptions, Url,
    tonic::{Code, Request, metadata::AsciiMetadataValue},
};
use temporalio_common::protos::temporal::api::workflowservice::v1::DescribeNamespaceRequest;
use tokio::time::timeout;

use super::answers::{connect_error, translate};
use crate::{
    backends::{
        execution_service::FAMILY,
        login::{Credentials, Login},
    },
    config::{self, BackendConfig, Secret, TableProblem},
    error::{Error, ErrorKind, RetryClass},
    tls::{self, certificates},
};

/// Bounds an RPC outside the guard, which has its own limit. Equals the largest allowed
/// `timeout.attempt`.
pub(super) const RPC_TIMEOUT: Duration = Duration::from_mins(10);

/// Without probes, as in the worker, only pings detect a dead connection; a longer interval would
/// cut the worker off for minutes.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(30);

/// A Temporal server or Temporal Cloud: durable executions for any number of instances.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// `host:port` of the server's frontend, or a URL with `http` or `https`; `https` means TLS,
    /// and so does `host:port` with `tls.enabled`.
    pub(super) address: String,
    /// The namespace of the executions; it must exist.
    pub(super) namespace: String,
    /// The task queue that `agentarea-api worker` polls, also used by workflows of kind `temporal`
    /// without a `task_queue` of their own.
    pub(super) task_queue: String,
    /// Prefix of the workflow id, before the execution's id, so that several deployments can share
    /// a namespace: letters, digits and `- _ . : ~ /`. Executions that are running when it changes
    /// are no longer found.
    pub(super) workflow_id_prefix: String,
    /// TLS to the server.
    pub(super) tls: Tls,
    /// API key, as for Temporal Cloud; only over TLS. It is read again from its file when the
    /// server refuses it.
    // A plain `Option` has a schema of two alternatives, which would lose the mark of a secret.
    #[schemars(with = "Secret")]
    pub(super) api_key: Option<Secret>,
}

/// TLS to a Temporal server.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Tls {
    /// Whether an `address` without a scheme means TLS.
    enabled: bool,
    /// PEM file with the certificate authorities trusted for the server; those of the system if
    /// unset.
    ca_file: Option<PathBuf>,
    /// PEM file with our certificate, for servers that require one; needs `key_file`. Both files
    /// are read again whenever the connection is rebuilt.
    cert_file: Option<PathBuf>,
    /// PEM file with the private key of `cert_file`.
    key_file: Option<PathBuf>,
    /// The name in the server's certificate, where it differs from the host in `address`.
    domain: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:7233".to_owned(),
            namespace: "default".to_owned(),
            task_queue: "agentarea".to_owned(),
            workflow_id_prefix: String::new(),
            tls: Tls::default(),
            api_key: None,
        }
    }
}

impl BackendConfig for Config {
    // The address of a cluster can change; its namespaces hold the runs.
    fn place_of_data(&self) -> Option<String> {
        Some(format!("{} {}", self.namespace, self.workflow_id_prefix))
    }

    fn check(&self) -> Vec<TableProblem> {
        let mut problems = Vec::new();
        let encrypted = match self.target() {
            Ok(target) => Some(target.scheme() == "https"),
            Err(message) => {
                problems.push(("address", message));
                None
            }
        };
        for (key, value) in [("namespace", &self.namespace), ("task_queue", &self.task_queue)] {
            if value.is_empty() {
                problems.push((key, "may not be empty".to_owned()));
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:~/".contains(c);
        if !self.workflow_id_prefix.chars().all(plain) {
            let message = "may hold letters, digits and - _ . : ~ / only".to_owned();
            problems.push(("workflow_id_prefix", message));
        }
        if encrypted == Some(false) {
            self.check_clear_text(&mut problems);
        }
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            let message = "a client certificate needs both cert_file and key_file".to_owned();
            problems.push(("tls", message));
        }
        if let Some(key) = &self.api_key
            && (key.expose().is_empty() || !key.expose().chars().all(|c| c.is_ascii_graphic()))
        {
            let message = "an API key has visible ASCII characters only, at least one".to_owned();
            problems.push(("api_key", message));
        }
        problems
    }

    fn address(&self) -> String {
        let Ok(target) = self.target() else { return String::new() };
        let with_tls = if target.scheme() == "https" { " with TLS" } else { "" };
        format!("{}{with_tls}, namespace {}", target.authority(), self.namespace)
    }
}

impl Config {
    /// Finds settings that are useless or unsafe without TLS.
    fn check_clear_text(&self, problems: &mut Vec<TableProblem>) {
        if self.api_key.is_some() {
            let message =
                "would be sent in clear text; set tls.enabled = true, or an https address";
            problems.push(("api_key", message.to_owned()));
        }
        let Tls { enabled, ca_file, cert_file, key_file, domain } = &self.tls;
        if *enabled {
            let message = "contradicts the http address: write https, or host:port";
            problems.push(("tls.enabled", message.to_owned()));
        } else if ca_file.is_some() || cert_file.is_some() || key_file.is_some() || domain.is_some()
        {
            let message = "has no effect without tls.enabled = true or an https address";
            problems.push(("tls", message.to_owned()));
        }
    }

    /// The login to the server.
    pub(super) fn login(&self) -> Result<Login<ApiKey>, Error> {
        Login::new(FAMILY, ApiKey(self.api_key.clone()))
    }

    /// The URL; the scheme says whether TLS is used.
    fn target(&self) -> Result<Url, String> {
        let address = &self.address;
        let bad = || {
            let found = config::given(address);
            format!("expected host:port or a URL such as \"https://temporal:7233\", found {found}")
        };
        let url = if address.contains("://") {
            address.clone()
        } else {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            port.ok_or_else(bad)?;
            format!("{}://{address}", if self.tls.enabled { "https" } else { "http" })
        };
        let url = Url::parse(&url).map_err(|_| bad())?;
        let bare = matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if !bare || !url.has_host() || !matches!(url.scheme(), "http" | "https") {
            return Err(bad());
        }
        Ok(url)
    }

    #[cfg(test)]
    pub(super) fn at(address: &str) -> Self {
        Self { address: address.to_owned(), ..Self::default() }
    }

    fn tls_options(&self) -> Result<TlsOptions, Error> {
        let tls = &self.tls;
        let client = match (&tls.cert_file, &tls.key_file) {
            (Some(cert), Some(key)) => Some(
                ClientTlsOptions::builder()
                    .client_cert(certificate("cert_file", cert)?)
                    .client_private_key(private_key(key)?)
                    .build(),
            ),
            _ => None,
        };
        let authority = tls.ca_file.as_ref().map(|file| certificate("ca_file", file));
        Ok(TlsOptions::builder()
            .maybe_server_root_ca_cert(authority.transpose()?)
            .maybe_domain(tls.domain.clone())
            .maybe_client_tls_options(client)
            .build())
    }

    fn options(
        &self,
        key: &Key,
        identity: &str,
        limits: &Limits,
        retries: RetryOptions,
    ) -> Result<ConnectionOptions, Error> {
        let target = self.target().map_err(|message| Error::new(ErrorKind::Internal, message))?;
        let encrypted = target.scheme() == "https";
        Ok(ConnectionOptions::new(target)
            .identity(identity)
            .connect_timeout(limits.connect)
            .keep_alive(limits.keepalive())
            .retry_options(retries)
            .grpc_compression(GrpcCompression::None)
            // Balancing over all addresses of a name would fail calls to an address that does not
            // answer; a single connection uses the first that does.
            .dns_load_balancing(None)
            .maybe_tls_options(encrypted.then(|| self.tls_options()).transpose()?)
            .maybe_api_key(key.value())
            .build())
    }
}

/// The API key, if the server requires one.
#[derive(Clone)]
pub(super) struct ApiKey(Option<Secret>);

/// The credentials of a call.
#[derive(Default)]
pub(super) struct Key {
    value: Option<String>,
    header: Option<AsciiMetadataValue>,
}

impl Credentials for ApiKey {
    type Ready = Key;

    fn secrets(&mut self) -> Vec<&mut Secret> {
        self.0.iter_mut().collect()
    }

    fn ready(&self) -> Result<Key, Error> {
        let Some(secret) = &self.0 else { return Ok(Key::default()) };
        let value = secret.expose().to_owned();
        let mut header: AsciiMetadataValue = format!("Bearer {value}").parse().map_err(|_| {
            let message = "the API key has characters that are not visible ASCII";
            Error::new(ErrorKind::Unauthenticated, message)
        })?;
        header.set_sensitive(true);
        Ok(Key { value: Some(value), header: Some(header) })
    }
}

impl Key {
    pub(super) fn value(&self) -> Option<String> {
        self.value.clone()
    }

    /// A request with a deadline. Its header overrides that of the connection, so that each call
    /// knows the key with which it was refused.
    pub(super) fn request<T>(&self, message: T, limit: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(limit);
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        request
    }
}

/// Reads a file with at least one certificate. The driver accepts a file without any, and then
/// refuses every server.
fn certificate(key: &str, file: &Path) -> Result<Vec<u8>, Error> {
    certificates(file).map_err(|error| unusable(key, &error))?;
    std::fs::read(file).map_err(|error| unusable(key, &error))
}

fn private_key(file: &Path) -> Result<Vec<u8>, Error> {
    tls::private_key(file).map_err(|error| unusable("key_file", &error))?;
    std::fs::read(file).map_err(|error| unusable("key_file", &error))
}

fn unusable(key: &str, error: &dyn std::fmt::Display) -> Error {
    let message = format!("tls.{key} {error}");
    Error::new(ErrorKind::Tls, message).with_retry(RetryClass::NotSent)
}

/// The connect timeout, and the keep-alive of an idle connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time for TCP, TLS and the first two calls together.
    connect: Duration,
    /// Time between two pings; 0 for none.
    keepalive: Duration,
}

impl Limits {
    /// The pool settings that apply to a single HTTP/2 connection.
    pub(super) fn of(pool: &config::Pool) -> Self {
        Self { connect: pool.connect_timeout, keepalive: pool.keepalive }
    }

    fn keepalive(&self) -> Option<ClientKeepAliveOptions> {
        let interval = self.keepalive.min(LONGEST_KEEPALIVE);
        (!interval.is_zero()).then(|| ClientKeepAliveOptions::builder().interval(interval).build())
    }
}

/// Connects, and checks that the namespace exists. `retries` are those of the SDK.
///
/// # Cancel safety
/// May be dropped at any await; an open connection is closed.
pub(super) async fn connect(
    config: &Config,
    login: &Login<ApiKey>,
    identity: &str,
    limits: &Limits,
    retries: RetryOptions,
) -> Result<Connection, Error> {
    let limit = limits.connect;
    let connecting = login.connect(async |key| {
        let options = config.options(&key, identity, limits, retries.clone())?;
        // Boxed in a function without type parameters, because the future contains the code of five
        // gRPC services, which would be compiled again for every caller.
        let connection = Box::pin(Connection::connect(options)).await;
        let connection = connection.map_err(|error| connect_error(&error))?;
        describe_namespace(&connection, &key, &config.namespace).await?;
        Ok(connection)
    });
    // The option `connect_timeout` covers TCP and TLS, not the calls that follow.
    let connected = timeout(limit, connecting).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        Err(Error::new(ErrorKind::Timeout, format!("no connection to Temporal within {limit}")))
    });
    connected.map_err(|error: Error| match error.retry() {
        // Only read requests have been sent so far.
        RetryClass::MaybeSent => error.with_retry(RetryClass::NotSent),
        _ => error,
    })
}

/// Checks that the namespace exists. Returns its retention for ended workflows.
pub(super) async fn describe_namespace(
    connection: &Connection,
    key: &Key,
    namespace: &str,
) -> Result<Option<Duration>, Error> {
    let message =
        DescribeNamespaceRequest { namespace: namespace.to_owned(), ..Default::default() };
    let request = key.request(message, RPC_TIMEOUT);
    match connection.workflow_service().describe_namespace(request).await {
        Ok(answer) => {
            let config = answer.into_inner().config;
            let retention = config.and_then(|config| config.workflow_execution_retention_ttl);
            // The server reports an unknown retention as zero.
            let seconds = retention.and_then(|time| u64::try_from(time.seconds).ok());
            Ok(seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs))
        }
        Err(status) if status.code() == Code::NotFound => Err(Error::new(
            ErrorKind::Missing,
            format!(
                "Temporal has no namespace {namespace:?}; create it with: \
                 temporal operator namespace create -n {namespace}"
            ),
        )),
        Err(status) => Err(translate(&status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut Config)) -> Vec<&'static str> {
        let mut config = Config::default();
        change(&mut config);
        config.check().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn an_address_is_host_and_port_or_a_url() {
        for (address, target) in [
            ("temporal:7233", "http://temporal:7233/"),
            ("[::1]:7233", "http://[::1]:7233/"),
            ("https://acme.tmprl.cloud:7233", "https://acme.tmprl.cloud:7233/"),
        ] {
            let config = Config { address: address.to_owned(), ..Config::default() };
            assert_eq!(config.target().unwrap().as_str(), target);
        }
        for bad in ["", "temporal", "temporal:seven", "ftp://a:1", "http://a:1/b", "u@h:1", "::1"] {
            assert_eq!(problems(|config| config.address = bad.to_owned()), ["address"], "{bad:?}");
        }
    }

    #[test]
    fn pings_follow_the_keepalive_of_the_pool() {
        let pings = |keepalive| {
            let pool = config::Pool { keepalive, ..config::Pool::default() };
            Limits::of(&pool).keepalive().map(|options| options.interval)
        };
        assert_eq!(pings(Duration::ZERO), None);
        assert_eq!(pings(Duration::from_secs(20)), Some(Duration::from_secs(20)));
        assert_eq!(pings(Duration::from_mins(2)), Some(LONGEST_KEEPALIVE));
    }

    #[test]
    fn tls_comes_by_the_switch_or_the_scheme() {
        let mut config = Config::default();
        config.tls.enabled = true;
        assert_eq!(config.target().unwrap().scheme(), "https");
        assert!(config.check().is_empty());
        config.address = "http://temporal:7233".to_owned();
        assert_eq!(problems(|other| *other = config), ["tls.enabled"]);
    }

    #[test]
    fn an_api_key_is_not_sent_in_clear_text() {
        let key = || Some(Secret::from("key"));
        assert_eq!(problems(|config| config.api_key = key()), ["api_key"]);
        let encrypted = |config: &mut Config| {
            config.api_key = key();
            config.address = "https://temporal:7233".to_owned();
        };
        assert!(problems(encrypted).is_empty());
        // A line break would make the client leave the header out.
        let broken = |config: &mut Config| {
            encrypted(config);
            config.api_key = Some(Secret::from("a\nb"));
        };
        assert_eq!(problems(broken), ["api_key"]);
    }

    #[test]
    fn half_a_client_certificate_is_refused() {
        let half = |config: &mut Config| {
            config.tls.enabled = true;
            config.tls.cert_file = Some("client.pem".into());
        };
        assert_eq!(problems(half), ["tls"]);
    }

    #[test]
    fn a_prefix_cannot_break_out_of_a_query() {
        let prefix = |config: &mut Config| config.workflow_id_prefix = "a' OR ".to_owned();
        assert_eq!(problems(prefix), ["workflow_id_prefix"]);
    }
}
