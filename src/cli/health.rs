//! `health`: for container health checks, which have no shell and no curl.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::Args;

use crate::{config::Config, lifecycle::Exit, tls};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The service to ask [default: the configured port on this machine]
    #[arg(long)]
    url: Option<String>,
    /// How long to wait for the answer
    #[arg(long, default_value = "2s", value_parser = crate::config::values::duration::parse)]
    timeout: Duration,
}

pub(super) fn run(arguments: &Arguments, config: &Config) -> anyhow::Result<Exit> {
    tls::install_provider();
    let scheme = if config.server.tls.cert_file.is_some() { "https" } else { "http" };
    let host = match config.server.host {
        host if host.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        host => host,
    };
    let address = SocketAddr::new(host, config.server.port);
    let url = arguments.url.clone().unwrap_or_else(|| format!("{scheme}://{address}/health"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = reqwest::Client::builder()
            .timeout(arguments.timeout)
            .no_proxy()
            // It asks its own process on this machine; the certificate names the public host.
            .danger_accept_invalid_certs(arguments.url.is_none())
            .build()?;
        match client.get(&url).send().await {
            Ok(answer) => {
                let good = answer.status().as_u16() < 400;
                super::print(&format!("{}\n", answer.text().await.unwrap_or_default()))?;
                Ok(if good { Exit::Clean } else { Exit::Failed })
            }
            Err(error) => {
                eprintln!("{url} does not answer: {}", cause(&error));
                Ok(Exit::Failed)
            }
        }
    })
}

fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
