//! A link to a server that fails in every way toxiproxy knows.

use std::process::{Command, Stdio};

use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{Process, eventually, free_port, http_client};

/// The fault of the link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The proxy closes all connections and stops listening.
    Cut,
    /// Data stops, connections stay.
    Stall,
    /// Data stops between calls, so that the first call meets a dead connection.
    HalfOpen,
    /// Every connection ends with a reset, new ones as well.
    Reset,
    /// Every answer comes later than an attempt waits.
    Slow,
    /// A kilobyte a second.
    Narrow,
}

impl Fault {
    pub(crate) const ALL: [Self; 6] =
        [Self::Cut, Self::Stall, Self::HalfOpen, Self::Reset, Self::Slow, Self::Narrow];

    /// Type and attributes of the toxic; `None` for a disabled proxy.
    fn toxic(self) -> Option<(&'static str, Value)> {
        match self {
            Self::Cut => None,
            Self::Stall | Self::HalfOpen => Some(("timeout", json!({"timeout": 0}))),
            Self::Reset => Some(("reset_peer", json!({"timeout": 0}))),
            Self::Slow => Some(("latency", json!({"latency": 1500}))),
            Self::Narrow => Some(("bandwidth", json!({"rate": 1}))),
        }
    }
}

/// A toxiproxy with one proxy in front of a server.
pub(crate) struct Toxiproxy {
    _process: Process,
    http: Client,
    base: String,
    upstream: String,
    pub(crate) address: String,
}

impl Toxiproxy {
    pub(crate) async fn before(upstream: &str) -> Self {
        let port = free_port();
        let mut command = Command::new("toxiproxy-server");
        command.args(["-host", "127.0.0.1", "-port", &port.to_string()]).stderr(Stdio::null());
        let process = Process::start(&mut command, "scripts/install puts it into ~/go/bin");
        let (base, http) = (format!("http://127.0.0.1:{port}"), http_client().build().unwrap());
        let upstream = upstream.to_owned();
        let mut proxy = Self { _process: process, http, base, upstream, address: String::new() };
        eventually("toxiproxy listens", async || {
            proxy.http.get(format!("{}/version", proxy.base)).send().await.ok()
        })
        .await;
        proxy.address = proxy.make("127.0.0.1:0").await;
        proxy
    }

    async fn send(&self, path: &str, body: &Value) -> Value {
        let sent = self.http.request(Method::POST, format!("{}{path}", self.base)).json(body);
        let answer = sent.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap_or_default()
    }

    pub(crate) async fn begin(&self, fault: Fault) {
        let Some((kind, attributes)) = fault.toxic() else {
            self.send("/proxies/link", &json!({"enabled": false})).await;
            return;
        };
        for stream in ["upstream", "downstream"] {
            let toxic = json!({"type": kind, "stream": stream, "attributes": attributes});
            self.send("/proxies/link/toxics", &toxic).await;
        }
    }

    /// Restores the link.
    pub(crate) async fn end(&self, fault: Fault) {
        // toxiproxy 2.12 can hang for half a minute when it removes a latency, even from closed
        // connections. A new proxy on the same port has no such state.
        if matches!(fault, Fault::Slow | Fault::Narrow) {
            let gone =
                self.http.delete(format!("{}/proxies/link", self.base)).send().await.unwrap();
            assert!(gone.status().is_success());
            self.make(&self.address).await;
        } else {
            self.send("/reset", &json!({})).await;
        }
    }

    /// Creates the proxy; returns its address.
    async fn make(&self, listen: &str) -> String {
        let wanted = json!({"name": "link", "listen": listen, "upstream": self.upstream});
        let made = self.send("/proxies", &wanted).await;
        made["listen"].as_str().unwrap().to_owned()
    }
}
