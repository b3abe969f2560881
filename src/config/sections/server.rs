//! `[server]`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigSection;
use crate::config::{
    problem::SectionProblems,
    values::{Size, duration},
};

/// The HTTP server.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address to listen on; `0.0.0.0` is every IPv4 interface, `::` every interface.
    pub host: IpAddr,
    /// Port to listen on. `0` lets the system choose a free one, which the start log names.
    pub port: u16,
    /// How long a request may take until its answer begins. Waiting that the client requests
    /// (`?wait=`) is added.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "10ms", "x-maximum" = "10m"))]
    pub request_timeout: Duration,
    /// Host names by which clients reach a service without authentication, such as
    /// `["api.example.org", "*.example.org"]`; requests for other names get 421, which prevents DNS
    /// rebinding by foreign pages. Addresses, `localhost`, names without a dot, and probes need no
    /// entry. With `auth.mode = "api_key"` every name is accepted.
    pub allowed_hosts: Vec<String>,
    /// The largest request body; larger ones get 413.
    #[schemars(extend("x-minimum" = "1KiB", "x-maximum" = "64MiB"))]
    pub max_body: Size,
    /// How long a client may take to send a complete request head. Also the longest silence
    /// between two requests of a kept-alive client connection.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "100ms", "x-maximum" = "10m"))]
    pub header_timeout: Duration,
    /// The most client connections at once; further ones wait in the system's backlog.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: usize,
    /// How long the service keeps serving after SIGTERM, while it reports not ready, so that load
    /// balancers take notice. `0s` stops at once.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "0s", "x-maximum" = "10m"))]
    pub drain_delay: Duration,
    /// How long stopping may take after `drain_delay`. Anything still running then is named in the
    /// log and cut off, and the exit code says so. Keep `drain_delay` + `shutdown_grace` below the
    /// orchestrator's own grace period.
    #[serde(with = "duration")]
    #[schemars(schema_with = "duration::schema", extend("x-minimum" = "100ms", "x-maximum" = "10m"))]
    pub shutdown_grace: Duration,
    /// TLS. Off unless both files are set.
    pub tls: ServerTls,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0, 0, 0, 0]),
            port: 8000,
            request_timeout: Duration::from_secs(30),
            allowed_hosts: Vec::new(),
            max_body: Size(1 << 20),
            header_timeout: Duration::from_secs(10),
            max_connections: 10_000,
            drain_delay: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
            tls: ServerTls::default(),
        }
    }
}

impl ConfigSection for Server {
    fn validate(&self, problems: &mut SectionProblems<'_, '_>) {
        if self.tls.cert_file.is_some() != self.tls.key_file.is_some() {
            problems.add("tls", "TLS needs both cert_file and key_file");
        }
        for (index, name) in self.allowed_hosts.iter().enumerate() {
            if !is_host_name(name) {
                problems.add(
                    &format!("allowed_hosts.{index}"),
                    "expected a name such as \"api.example.org\" or \"*.example.org\", without \
                     scheme, port and path",
                );
            }
        }
    }
}

/// True when `text` is a host name, or a wildcard for all names below one.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let label = |label: &str| {
        let is_fit = |sign: u8| sign.is_ascii_alphanumeric() || matches!(sign, b'-' | b'_');
        !label.is_empty() && label.bytes().all(is_fit)
    };
    name.strip_suffix('.').unwrap_or(name).split('.').all(label)
}

/// TLS of the HTTP server.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct ServerTls {
    /// PEM file with the certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the private key.
    pub key_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::problems_of;

    #[test]
    fn tls_needs_two_files_and_a_host_is_a_name() {
        assert_eq!(problems_of("server", &Server::default()), [""; 0]);
        let tls = ServerTls { cert_file: Some("cert.pem".into()), key_file: None };
        let allowed_hosts = ["*.a.example", "a.example.", "http://b", ""].map(str::to_owned).into();
        let told = problems_of("server", &Server { allowed_hosts, tls, ..Server::default() });
        let keys: Vec<&str> = told.iter().filter_map(|told| told.split(": ").next()).collect();
        assert_eq!(keys, ["server.tls", "server.allowed_hosts.2", "server.allowed_hosts.3"]);
    }
}
