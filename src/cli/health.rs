//! `health`: for people, for scripts, and for container health checks, which have no shell and no
//! curl.

mod report;
mod watch;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use reqwest::{Client, Url};
use serde_json::Value;

use self::report::Report;
use super::{Format, screen::Screen};
use crate::{
    config::{self, Loaded, values::duration},
    lifecycle::Exit,
    tls,
};

/// The variable that names the key file where no argument can be given, as in a container.
const KEY_FILE: &str = "AGENTAREA_KEY_FILE";

pub(super) const AFTER_HELP: &str = "\
In production, the report includes details only for callers with a key that has the scope `read`:
name its file with --key-file, or in the variable AGENTAREA_KEY_FILE.

Examples:
  agentarea-api health
  agentarea-api health --watch --key-file /run/secrets/api_key
  agentarea-api health --url https://agentarea.example.com --format json | jq -r .status

Exit codes: 0 the HTTP status is below 400, 1 it is not, or there is no answer, 78 the configuration
has problems. With --watch, 0 when it is ended by Ctrl-C.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The service to ask [default: the configured port on this machine]
    #[arg(long, value_parser = parse_url)]
    url: Option<Url>,
    /// How long to wait for an answer
    #[arg(long, default_value = "2s", value_parser = duration::parse)]
    timeout: Duration,
    /// File with an API key, for the details [default: the variable `AGENTAREA_KEY_FILE`]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Repeat until Ctrl-C
    ///
    /// On a terminal the report is redrawn; elsewhere each change is a line, with --format json a
    /// document in one line.
    #[arg(long)]
    watch: bool,
    /// How long to wait between two questions
    #[arg(long, default_value = "2s", requires = "watch", value_parser = duration::parse)]
    interval: Duration,
}

/// `https://host` is enough.
fn parse_url(text: &str) -> Result<Url, String> {
    let mut url: Url = text.parse().map_err(|error| format!("{error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("expected http://HOST[:PORT] or https://HOST[:PORT]".to_owned());
    }
    if url.path() == "/" {
        url.set_path("/health");
    }
    Ok(url)
}

pub(super) fn run(arguments: &Arguments, loaded: &Loaded) -> anyhow::Result<Exit> {
    tls::install_provider();
    let variable = loaded.sources.variable(KEY_FILE).filter(|file| !file.is_empty());
    let key_file = arguments.key_file.as_deref().or(variable.map(Path::new));
    let key = match key_file.map(read_key).transpose() {
        Ok(key) => key,
        Err(error) => {
            eprintln!("agentarea-api: {error:#}");
            return Ok(Exit::BadConfig);
        }
    };
    let service = Service {
        url: arguments.url.clone().map_or_else(|| here(loaded), Ok)?,
        http: Client::builder()
            .timeout(arguments.timeout)
            .no_proxy()
            // The request goes to this machine, while the certificate names the public host.
            .danger_accept_invalid_certs(arguments.url.is_none())
            .build()?,
        key,
    };
    let screen = Screen::new(&loaded.sources);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if arguments.watch {
            return watch::run(&service, screen, arguments.format, arguments.interval).await;
        }
        match service.ask().await {
            Ok(answer) => {
                let text = match arguments.format {
                    Format::Text => answer.report.text(screen, service.key.is_some()),
                    Format::Json => super::document(&answer.document)?,
                };
                super::print(&text)?;
                Ok(if answer.good { Exit::Clean } else { Exit::Failed })
            }
            Err(cause) => {
                eprintln!("{cause}");
                Ok(Exit::Failed)
            }
        }
    })
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let key = config::read_secret(path)
        .with_context(|| format!("the key file {} cannot be read", path.display()))?;
    let key = key.trim().to_owned();
    anyhow::ensure!(!key.is_empty(), "the key file {} is empty", path.display());
    Ok(key)
}

fn here(loaded: &Loaded) -> anyhow::Result<Url> {
    let server = &loaded.config.server;
    let scheme = if server.tls.cert_file.is_some() { "https" } else { "http" };
    let host = match server.host {
        host if host.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        host => host,
    };
    Ok(format!("{scheme}://{}/health", SocketAddr::new(host, server.port)).parse()?)
}

/// The service that is asked.
struct Service {
    url: Url,
    http: Client,
    key: Option<String>,
}

/// The report.
struct Answer {
    good: bool,
    document: Value,
    report: Report,
}

impl Service {
    /// The reason for a missing report is printed as an error, for people.
    async fn ask(&self) -> Result<Answer, String> {
        let mut request = self.http.get(self.url.clone());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let silent = |error| format!("{} does not answer: {}", self.url, cause(&error));
        let answer = request.send().await.map_err(silent)?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await.map_err(silent)?;
        let document: Value = serde_json::from_slice(&body).unwrap_or_default();
        let report = serde_json::from_value(document.clone())
            .map_err(|_| format!("{} answers {status}, but not with a health report", self.url))?;
        Ok(Answer { good: status < 400, document, report })
    }
}

fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_path_is_enough() {
        let parsed = |text| parse_url(text).map(String::from);
        assert_eq!(parsed("http://host:1").as_deref(), Ok("http://host:1/health"));
        assert_eq!(parsed("https://host/a/health").as_deref(), Ok("https://host/a/health"));
        assert!(parsed("host:8000").is_err() && parsed("nowhere").is_err());
    }
}
