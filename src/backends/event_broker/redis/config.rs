//! `[event_broker.redis]`.

use std::path::PathBuf;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BackendConfig, Secret, TableProblem, given};

/// A Redis stream, for any number of instances. Needs Redis 6.2 or newer, or a server that speaks
/// its language, such as Valkey.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(in super::super) struct Config {
    /// Address, such as `redis://user:password@host:6379/0`, its last part the number of the
    /// database. `rediss://` is TLS, with a certificate that fits the host name and comes from
    /// `ca_file`, or from a public authority if that is unset. `unix:///path` is a local socket.
    /// What it is the address of depends on `mode`.
    pub(super) url: Secret,
    /// The password, if it does not stand in `url`; it wins over one that does.
    pub(super) password: Option<Secret>,
    /// PEM file with the authorities that are trusted instead of the public ones; only with
    /// `rediss://`.
    pub(super) ca_file: Option<PathBuf>,
    /// `standalone`: `url` is the server. `sentinel`: `url` is one of the sentinels, which name the
    /// primary; user, password and database are the primary's, and a failover is followed.
    /// `cluster`: `url` is one of the nodes; the stream lives on one of them, whose failover and
    /// whose slot's move to another are followed. TLS is used for all of them or for none.
    pub(super) mode: Mode,
    /// The other sentinels, or other nodes of the cluster, as `host:port`. The more are named, the
    /// more can be down when a connection is made. Not with `standalone`.
    pub(super) nodes: Vec<String>,
    /// What the sentinels call the primary; only with `sentinel`.
    pub(super) master_name: String,
    /// The user at the sentinels, if they want one; only with `sentinel`.
    pub(super) sentinel_user: Option<String>,
    /// The password at the sentinels, if they want one; only with `sentinel`.
    pub(super) sentinel_password: Option<Secret>,
    /// The key of the stream. All instances that share events need the same; whoever shares the
    /// database with another deployment needs another.
    pub(super) stream: String,
    /// About so many events are kept for readers that resume; older ones are trimmed whenever one
    /// is appended. Redis holds them in memory: a million events of 1 KiB take more than 1 GiB.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(super) max_events: u64,
    /// `cloudevents`: events are appended to the stream. `agentarea`: each is also published, in
    /// `AgentArea`'s envelope, on the channel named like its type. Nobody resumes from a channel, so
    /// subscribers that are away miss events.
    pub(super) wire: Wire,
}

/// How the server that holds the stream is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Mode {
    /// It is the one configured.
    Standalone,
    /// Sentinels name it.
    Sentinel,
    /// Nodes of its cluster redirect to it.
    Cluster,
}

/// What is written besides the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Wire {
    /// Nothing.
    CloudEvents,
    /// `AgentArea`'s envelope, to a channel.
    AgentArea,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::from("redis://127.0.0.1:6379"),
            password: None,
            ca_file: None,
            mode: Mode::Standalone,
            nodes: Vec::new(),
            master_name: "mymaster".to_owned(),
            sentinel_user: None,
            sentinel_password: None,
            stream: "agentarea:events".to_owned(),
            max_events: 1_000_000,
            wire: Wire::CloudEvents,
        }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        let mut problems = match self.url.expose().into_connection_info() {
            // The parser's message can repeat parts of the URL, so it is not shown.
            Err(_) => vec![(
                "url",
                "cannot be read; expected redis://user:password@host:6379/0, or rediss:// for TLS"
                    .to_owned(),
            )],
            Ok(info) => self.check_url(&info),
        };
        if self.stream.is_empty() {
            problems.push(("stream", "needs a name, such as \"agentarea:events\"".to_owned()));
        }
        problems.extend(self.check_mode());
        problems
    }

    fn address(&self) -> String {
        let Ok(info) = self.url.expose().into_connection_info() else { return String::new() };
        let with_tls =
            if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) { " with TLS" } else { "" };
        let through = match self.mode {
            Mode::Standalone | Mode::Cluster => String::new(),
            Mode::Sentinel => format!("{} of ", self.master_name),
        };
        // Without the user and the password that `info` holds as well.
        let mut hosts = vec![info.addr().to_string()];
        hosts.extend(self.nodes.iter().cloned());
        format!("{through}{}/{}{with_tls}", hosts.join(","), info.redis_settings().db())
    }
}

impl Config {
    fn check_url(&self, info: &ConnectionInfo) -> Vec<TableProblem> {
        let mut problems = Vec::new();
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => problems.push((
                "url",
                "certificates are always checked: name their authority in ca_file instead of \
                 #insecure"
                    .to_owned(),
            )),
            ConnectionAddr::Unix(_) if self.mode != Mode::Standalone => {
                problems.push(("url", "a local socket works with mode standalone only".to_owned()));
            }
            _ => {}
        }
        if self.ca_file.is_some() && !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            problems.push(("ca_file", "has no effect without TLS: use rediss://".to_owned()));
        }
        if self.mode == Mode::Cluster && info.redis_settings().db() != 0 {
            problems.push(("url", "a cluster has no database but 0".to_owned()));
        }
        problems
    }

    fn check_mode(&self) -> Vec<TableProblem> {
        let mut problems = Vec::new();
        if self.mode == Mode::Standalone && !self.nodes.is_empty() {
            let message = "need mode sentinel or cluster: a standalone server is the one in url";
            problems.push(("nodes", message.to_owned()));
        }
        // Not a URL, whose user and password would show in the address.
        let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '@']);
        let is_address = |node: &str| host_and_port(node).is_some_and(|(host, _)| is_host(host));
        if let Some(node) = self.nodes.iter().find(|node| !is_address(node)) {
            let found = given(node);
            problems.push(("nodes", format!("{found} is not host:port, such as redis-2:26379")));
        }
        if self.mode == Mode::Sentinel && self.master_name.is_empty() {
            problems.push(("master_name", "is needed to ask sentinels for the primary".to_owned()));
        }
        if self.mode != Mode::Sentinel {
            let message = "has no effect without mode sentinel";
            let set = [
                ("sentinel_user", self.sentinel_user.is_some()),
                ("sentinel_password", self.sentinel_password.is_some()),
            ];
            let set = set.into_iter().filter(|(_, is_set)| *is_set);
            problems.extend(set.map(|(key, _)| (key, message.to_owned())));
        }
        if self.mode == Mode::Cluster && hash_tag(&self.stream).contains('}') {
            let message = "in a cluster, } may only end a hash tag, as in \"{agentarea}:events\"";
            problems.push(("stream", message.to_owned()));
        }
        problems
    }

    /// A key that a cluster keeps on the node of the stream.
    pub(super) fn key_beside_the_stream(&self, name: &str) -> String {
        format!("agentarea:{name}:{{{}}}", hash_tag(&self.stream))
    }
}

/// The part of a key that decides on which node of a cluster it is.
fn hash_tag(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// Takes an address as Redis writes it apart: an IPv6 address has no brackets.
pub(super) fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(section: Value) -> Config {
        serde_json::from_value(section).unwrap()
    }

    #[test]
    fn a_section_that_cannot_work_is_refused_without_its_secrets() {
        for (section, key) in [
            (json!({"url": "http://u:hunter2@host"}), "url"),
            (json!({"url": "redis://u:hunter2@host/x"}), "url"),
            (json!({"url": "rediss://u:hunter2@host#insecure"}), "url"),
            (json!({"url": "redis://u:hunter2@host/1", "mode": "cluster"}), "url"),
            (json!({"url": "unix:///socket?pass=hunter2", "mode": "sentinel"}), "url"),
            (json!({"url": "redis://u:hunter2@host", "ca_file": "/ca.pem"}), "ca_file"),
            (json!({"stream": ""}), "stream"),
            (json!({"stream": "a}b", "mode": "cluster"}), "stream"),
            (json!({"stream": "a{}b", "mode": "cluster"}), "stream"),
            (json!({"nodes": ["host:1"]}), "nodes"),
            (json!({"nodes": ["host"], "mode": "cluster"}), "nodes"),
            (json!({"nodes": [":1"], "mode": "sentinel"}), "nodes"),
            (json!({"nodes": ["u:hunter2@host:1"], "mode": "cluster"}), "nodes"),
            (json!({"nodes": ["redis://u:hunter2@host:1"], "mode": "cluster"}), "nodes"),
            (json!({"master_name": "", "mode": "sentinel"}), "master_name"),
            (json!({"sentinel_user": "u"}), "sentinel_user"),
            (json!({"sentinel_password": "hunter2", "mode": "cluster"}), "sentinel_password"),
        ] {
            let found = config(section.clone()).check();
            assert_eq!(found.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key], "{section}");
            assert!(!found[0].1.contains("hunter2"));
        }
    }

    #[test]
    fn each_mode_has_a_section_that_works() {
        for section in [
            json!({}),
            json!({"url": "rediss://u:p@host:1/2", "ca_file": "/ca.pem"}),
            json!({"mode": "cluster", "nodes": ["host:1", "[::1]:6379"]}),
            json!({
                "mode": "sentinel", "nodes": ["host:1"], "master_name": "main",
                "sentinel_user": "u", "sentinel_password": "p", "url": "redis://u:p@host:1/2",
            }),
        ] {
            assert!(config(section.clone()).check().is_empty(), "{section}");
        }
    }

    #[test]
    fn the_address_names_all_places_and_no_secret() {
        let nodes = json!({
            "url": "redis://u:p@a:1/2", "nodes": ["b:2"], "mode": "sentinel",
            "sentinel_password": "p",
        });
        assert_eq!(config(nodes).address(), "mymaster of a:1,b:2/2");
        let cluster = json!({"url": "rediss://u:p@a:1", "nodes": ["b:2"], "mode": "cluster"});
        assert_eq!(config(cluster).address(), "a:1,b:2/0 with TLS");
    }

    #[test]
    fn a_key_beside_the_stream_has_its_hash_tag() {
        for (stream, tag) in [("events", "events"), ("a{b}c{d}", "b")] {
            let key = config(json!({"stream": stream})).key_beside_the_stream("probe");
            assert_eq!(key, format!("agentarea:probe:{{{tag}}}"));
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(host_and_port("host:1"), Some(("host", 1)));
        assert_eq!(host_and_port("::1:6379"), Some(("::1", 6379)));
        assert_eq!(host_and_port("[::1]:6379"), Some(("::1", 6379)));
        // A cluster's node that does not know its name.
        assert_eq!(host_and_port(":1"), Some(("", 1)));
        for no in ["host", "host:", "host:0", "host:65536"] {
            assert_eq!(host_and_port(no), None, "{no}");
        }
    }
}
