//! Our service under measurement, with a database of its own.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hyper::{Method, body::Bytes};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_postgres::NoTls;

use crate::{
    DatabaseKind,
    delay::DelayingProxy,
    figures::median,
    load::{self, Answer, Sent, Until},
    support::{Database, Postgres, Service, Setup, eventually},
    usage::{self, Watched},
    variable,
};

/// The input of every execution, of our side and of the others alike.
pub(crate) const INPUT: &str = r#"{"agent_id":"b7a1c9d2-0c43-4f0e-8e57-55d1f0a5c3e9","user_id":"dev-user","task_query":"Summarise the weekly report in five plain sentences.","task_parameters":{"tone":"plain","limit":5},"timeout_seconds":300}"#;
pub(crate) const EXECUTIONS: &str = "/v1/executions";
pub(crate) const EVENTS: &str = "/v1/events";
/// The time without any progress after which a measurement fails.
const STUCK: Duration = Duration::from_mins(1);
/// The pauses between two looks at a counter.
const SHORTEST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

const QUERIES: usize = 101;

/// The service, and its `PostgreSQL` server if it has one.
pub(crate) struct Ours {
    // The service ends before its database.
    pub(crate) service: Service,
    postgres: Option<Server>,
}

/// A `PostgreSQL` server that nobody else uses.
struct Server {
    id: u32,
    database: Database,
    proxy: Option<DelayingProxy>,
    _process: Postgres,
}

/// Settings of a start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) database: DatabaseKind,
    /// `host:port` of Temporal; without it, executions run in the service itself.
    pub(crate) temporal: Option<&'a str>,
    /// The time that the network to `PostgreSQL` adds to a round trip.
    pub(crate) round_trip: Option<Duration>,
}

impl<'a> Start<'a> {
    pub(crate) fn new(database: DatabaseKind, temporal: &'a str) -> Self {
        Self { database, temporal: Some(temporal), round_trip: None }
    }
}

/// The program under measurement.
pub(crate) fn program() -> PathBuf {
    let built = || env!("CARGO_BIN_EXE_agentarea-api").to_owned();
    variable("OURS").unwrap_or_else(built).into()
}

/// Prepares the program as it is shipped, except that it refuses nothing because much is waiting.
pub(crate) fn setup(temporal: Option<&str>) -> Setup {
    let setup = Setup::as_shipped().program(&program()).set("outbox.max_rows", "100000000");
    match temporal {
        Some(address) => setup.variable("TEMPORAL_ADDRESS", address),
        None => setup,
    }
}

impl Server {
    async fn start(round_trip: Option<Duration>) -> Self {
        let server = Postgres::start().await;
        // It listens before it lets anyone in.
        let connect = async || tokio_postgres::connect(&server.url(), NoTls).await.ok().map(drop);
        eventually("PostgreSQL answers", connect).await;
        let database = Database::create_on(server.url()).await;
        let backend = database.value("SELECT pg_backend_pid()::bigint").await;
        let id = usage::parent(u32::try_from(backend).expect("a process id"));
        let to_server = |round_trip| DelayingProxy::to(server.address(), round_trip);
        Self { id, database, proxy: round_trip.map(to_server), _process: server }
    }

    fn url(&self) -> String {
        match &self.proxy {
            Some(proxy) => self.database.url_at(&proxy.address),
            None => self.database.url.clone(),
        }
    }
}

impl Ours {
    /// Starts it and waits until all its connections are made.
    pub(crate) async fn start(start: Start<'_>) -> Self {
        let postgres = match start.database {
            DatabaseKind::Sqlite => None,
            DatabaseKind::Postgres => Some(Server::start(start.round_trip).await),
        };
        let setup = setup(start.temporal);
        let setup = match &postgres {
            Some(server) => setup.variable("DATABASE_URL", &server.url()),
            None => setup,
        };
        let service = setup.start().await;
        service.healthy().await;
        Self { service, postgres }
    }

    /// The service and its database.
    pub(crate) fn watched(&self) -> Vec<Watched> {
        let database = self.postgres.as_ref();
        let database = database.map(|server| Watched { name: "the database", id: server.id });
        let service = Watched { name: "the service", id: self.service.child.id() };
        [service].into_iter().chain(database).collect()
    }

    /// Holds what is accepted for a connection, or releases it.
    pub(crate) async fn hold(&self, connection: &str, held: bool) {
        let state = if held { "forced_open" } else { "automatic" };
        let breaker = format!("/v1/connections/{connection}/circuit-breaker");
        let answer = self.service.put(&breaker).json(&json!({"state": state})).send().await;
        assert!(answer.expect("an answer").status().is_success(), "the breaker is {state}");
    }

    /// Posts executions or events from many clients at once.
    pub(crate) async fn accept(&self, path: &'static str, clients: usize, until: Until) -> Sent {
        let body = |client: usize| match path {
            EXECUTIONS => format!(r#"{{"workflow":"echo","input":{INPUT}}}"#),
            _ => format!(r#"{{"type":"t","subject":"s{client}","data":{INPUT}}}"#),
        };
        let bodies: Vec<Bytes> = (0..clients).map(|client| body(client).into()).collect();
        load::run(self.host(), clients, until, async move |connection, client| {
            let (status, _answer) =
                connection.send(Method::POST, path, bodies[client].clone()).await;
            Answer::of(status, 202)
        })
        .await
    }

    /// `host:port`.
    pub(crate) fn host(&self) -> &str {
        self.service.base.trim_start_matches("http://")
    }

    /// The executions that were started so far.
    pub(crate) async fn started(&self) -> f64 {
        self.delivered("execution_service").await
    }

    /// How much a connection has taken so far of what was accepted for it.
    pub(crate) async fn delivered(&self, connection: &str) -> f64 {
        let labels = format!("{{destination=\"{connection}\"}}");
        self.counted(&format!("agentarea_outbox_delivered_total{labels}")).await
    }

    /// The executions that are stored as completed so far.
    pub(crate) async fn completed(&self) -> f64 {
        self.counted(r#"agentarea_executions_total{workflow="echo",status="completed"}"#).await
    }

    /// The median time of the shortest query, in milliseconds.
    pub(crate) async fn database_round_trip_ms(&self) -> Option<f64> {
        let url = self.postgres.as_ref()?.url();
        let (client, connection) =
            tokio_postgres::connect(&url, NoTls).await.expect("PostgreSQL answers");
        let queries = async {
            let mut took_ms = Vec::new();
            for _ in 0..QUERIES {
                let sent = Instant::now();
                client.batch_execute("").await.expect("an answer");
                took_ms.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            took_ms
        };
        tokio::select! {
            took_ms = queries => Some(median(took_ms)),
            _ended = connection => None,
        }
    }

    async fn counted(&self, series: &str) -> f64 {
        let answer = self.service.get("/metrics").send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{series} is missing in\n{text}"))
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        self.service.json(path).await
    }
}

/// Waits until a counter reaches `goal`. Returns the seconds until it first rose.
///
/// # Panics
/// When it does not rise for long.
pub(crate) async fn reaches(goal: f64, counter: impl AsyncFn() -> f64) -> f64 {
    let begin = Instant::now();
    let before = counter().await;
    let (mut last, mut risen_at, mut first) = (before, begin, None);
    while last < goal {
        let rate = (last - before) / begin.elapsed().as_secs_f64();
        sleep(until_next_look(goal - last, rate)).await;
        let now = counter().await;
        if now > last {
            (last, risen_at) = (now, Instant::now());
            first.get_or_insert(risen_at - begin);
        }
        assert!(risen_at.elapsed() < STUCK, "stuck at {last} of {goal}, from {before}");
    }
    first.unwrap_or_default().as_secs_f64()
}

/// A look costs the service time, so there are few while much is left.
fn until_next_look(left: f64, rate: f64) -> Duration {
    let half = Duration::try_from_secs_f64(left / rate / 2.0).unwrap_or(SHORTEST_LOOK);
    half.clamp(SHORTEST_LOOK, LONGEST_LOOK)
}
