//! The Go programs beside which ours is measured.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use hyper::{Method, body::Bytes};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{
    Row,
    figures::{FAILED, Figures, P50, P99, STARTED, number},
    frontend::Frontend,
    load::{self, Answer, Sent, Until},
    ours::INPUT,
    support::{Process, Redis, free_port, listens},
    usage::Watched,
    variable,
};

/// The folder with the programs.
pub(crate) struct Programs(Option<PathBuf>);

impl Programs {
    pub(crate) fn from_environment() -> Self {
        Self(variable("PEERS_BIN").map(PathBuf::from))
    }

    /// The first of these names that exists.
    fn find(&self, names: &[&str]) -> Option<PathBuf> {
        let folder = self.0.as_ref()?;
        names.iter().map(|name| folder.join(name)).find(|program| program.is_file())
    }
}

/// The programs that were found.
pub(crate) struct Peers {
    start_loop: Option<PathBuf>,
    http_peer: Option<PathBuf>,
    stub: Option<PathBuf>,
    input: TempDir,
}

impl Peers {
    pub(crate) fn new(programs: &Programs) -> Self {
        let input = TempDir::new().expect("a folder");
        fs::write(input.path().join("input.json"), INPUT).expect("the input is written");
        Self {
            start_loop: programs.find(&["startloop"]),
            http_peer: programs.find(&["peer", "go-peer"]),
            stub: programs.find(&["temporal-stub"]),
            input,
        }
    }

    /// The programs that a row needs and that were not found.
    pub(crate) fn missing(&self, row: Row) -> Vec<&'static str> {
        let (start_loop, stub) = (("startloop", &self.start_loop), ("temporal-stub", &self.stub));
        let needed = match row {
            Row::UnderLoad | Row::Drain => vec![start_loop],
            Row::Stub => vec![start_loop, stub],
            Row::Cost => vec![("peer", &self.http_peer), stub],
            Row::Far | Row::Endings => vec![stub],
            Row::Held | Row::EndToEnd => vec![],
        };
        let missing = needed.iter().filter(|(_, program)| program.is_none());
        missing.map(|(name, _)| *name).collect()
    }

    /// Starts the stub of Temporal.
    pub(crate) async fn stub(&self, end_after: Option<&str>) -> Frontend {
        Frontend::stub(self.stub.as_ref().expect("the row needs it"), end_after).await
    }

    /// Runs the loop that starts workflows without a service in front of it.
    pub(crate) async fn start_loop(
        &self,
        frontend: &Frontend,
        callers: usize,
        lasts: Duration,
    ) -> StartLoop {
        let program = self.start_loop.as_ref().expect("the row needs it");
        let mut command = tokio::process::Command::new(program);
        command
            .args(["-how", "sdk", "-addr", &frontend.address, "-c", &callers.to_string()])
            .args(["-d", &format!("{}ms", lasts.as_millis()), "-body"])
            .arg(self.input.path().join("input.json"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.expect("startloop runs");
        let error = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("startloop: {error}"))
    }

    /// Starts the service that a Go engineer would write instead.
    pub(crate) async fn http_peer(&self, frontend: &Frontend) -> HttpPeer {
        let (redis, port) = (Redis::start().await, free_port());
        let mut command = Command::new(self.http_peer.as_ref().expect("the row needs it"));
        command
            .env("PORT", port.to_string())
            .env("REDIS_URL", redis.url())
            .env("TEMPORAL_ADDRESS", &frontend.address)
            .stderr(Stdio::null());
        let process = Process::start(&mut command, "PEERS_BIN names the folder with peer");
        listens("the Go peer", port).await;
        HttpPeer { process, host: format!("127.0.0.1:{port}"), _redis: redis }
    }
}

/// The answer of the loop.
#[derive(Debug, Deserialize)]
pub(crate) struct StartLoop {
    #[serde(rename = "rps")]
    pub(crate) per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    pub(crate) requests: u32,
    errors: u32,
    #[serde(rename = "cpu_us_per_req")]
    cpu_micros: f64,
}

impl StartLoop {
    pub(crate) fn cost(&self, figures: Figures) -> Figures {
        figures.with("CPU of the Go loop, µs each", self.cpu_micros)
    }

    /// All that it says.
    pub(crate) fn figures(&self) -> Figures {
        let figures = Figures::default()
            .with(STARTED, self.per_second)
            .with("starts", number(self.requests))
            .with(P50, self.p50_ms)
            .with(P99, self.p99_ms)
            .with(FAILED, number(self.errors));
        self.cost(figures)
    }
}

/// A running Go peer.
pub(crate) struct HttpPeer {
    process: Process,
    host: String,
    _redis: Redis,
}

impl HttpPeer {
    pub(crate) fn watched(&self) -> Watched {
        Watched { name: "the service", id: self.process.id() }
    }

    /// Starts executions from many clients at once.
    pub(crate) async fn start(&self, clients: usize, until: Until) -> Sent {
        load::run(&self.host, clients, until, async |connection, _client| {
            let body = Bytes::from_static(INPUT.as_bytes());
            let (status, _answer) = connection.send(Method::POST, "/executions", body).await;
            Answer::of(status, 201)
        })
        .await
    }
}
