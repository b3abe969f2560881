//! The table of the backend `postgres`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_postgres::config::Host;

use crate::config::{BackendConfig, Secret, TableProblem};

/// `PostgreSQL`, for any number of instances. Needs version 10 or newer.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// Address, user and database, such as `postgres://user:password@host:5432/agentarea`. Its
    /// `sslmode` is ignored; set `tls` instead.
    pub(super) url: Secret,
    /// The password, if it is not part of `url`.
    pub(super) password: Option<Secret>,
    /// `disable`: no TLS. `prefer`: TLS if the server offers it, without checking its certificate.
    /// `require`: TLS, without checking the certificate. `verify`: TLS with a certificate that
    /// matches the host name and is signed by an authority in `ca_file`, or by a public authority
    /// if that is unset.
    pub(super) tls: Tls,
    /// PEM file with the certificate authorities that `verify` trusts.
    pub(super) ca_file: Option<PathBuf>,
}

/// The level of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Tls {
    /// No TLS.
    Disable,
    /// TLS if the server offers it.
    Prefer,
    /// TLS always.
    Require,
    /// TLS always, with a checked certificate.
    Verify,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::from("postgres://postgres@127.0.0.1:5432/agentarea"),
            password: None,
            tls: Tls::Prefer,
            ca_file: None,
        }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        // The parser's message can repeat parts of the URL, so it is not shown.
        if self.url.expose().parse::<tokio_postgres::Config>().is_err() {
            let expected = "cannot be read; expected postgres://user:password@host:5432/database";
            return vec![("url", expected.to_owned())];
        }
        Vec::new()
    }

    fn address(&self) -> String {
        let Ok(url) = self.url.expose().parse::<tokio_postgres::Config>() else {
            return String::new();
        };
        let port = |number: usize| {
            let ports = url.get_ports();
            ports.get(number).or_else(|| ports.last()).copied().unwrap_or(5432)
        };
        let hosts = url.get_hosts().iter().enumerate().map(|(number, host)| match host {
            Host::Tcp(name) => format!("{name}:{}", port(number)),
            Host::Unix(folder) => folder.display().to_string(),
        });
        let hosts: Vec<String> = hosts.collect();
        let database = url.get_dbname().or(url.get_user()).unwrap_or_default();
        format!("{}/{database}", hosts.join(","))
    }

    fn place_of_data(&self) -> Option<String> {
        let url: tokio_postgres::Config = self.url.expose().parse().ok()?;
        Some(format!("{:?} {:?} {:?}", url.get_hosts(), url.get_ports(), url.get_dbname()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_url_is_refused_without_showing_it() {
        let config =
            Config { url: Secret::from("postgres://u:hunter2@h:notaport/d"), ..Config::default() };
        let problems = config.check();
        assert_eq!(problems.len(), 1);
        assert!(!problems[0].1.contains("hunter2"));
    }
}
