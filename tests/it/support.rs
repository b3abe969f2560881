//! Starts the program and servers, and waits for conditions with a deadline.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
#[cfg(feature = "postgres")]
use tokio::{io::copy_bidirectional, net::TcpStream, sync::watch, task::JoinSet};

/// Long enough for a loaded machine; only failures wait for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Tries `attempt` until it gives something.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    loop {
        pace.tick().await;
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends `signal` to a process.
pub(crate) fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

async fn ended(child: &mut Child) -> ExitStatus {
    eventually("the process ends", async || child.try_wait().unwrap()).await
}

/// How the program is started.
pub(crate) struct Setup {
    program: String,
    folder: TempDir,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Setup {
    /// Embedded defaults in a folder of its own, with quick probes and no drain delay.
    pub(crate) fn new() -> Self {
        ["event_broker", "execution_service", "database"]
            .iter()
            .fold(Self::bare(), |setup, connection| {
                setup
                    .set(&format!("{connection}.probe.interval"), "\"200ms\"")
                    .set(&format!("{connection}.probe.timeout"), "\"200ms\"")
            })
            .set("server.host", "\"127.0.0.1\"")
            .set("server.port", "0")
            .set("server.drain_delay", "\"0s\"")
            .set("executions.follow_interval", "\"50ms\"")
    }

    fn bare() -> Self {
        Self {
            program: env!("CARGO_BIN_EXE_agentarea-api").to_owned(),
            folder: tempfile::tempdir().unwrap(),
            arguments: Vec::new(),
            variables: Vec::new(),
        }
    }

    /// Sets a key; text is given in quotes, as in TOML.
    pub(crate) fn set(mut self, key: &str, value: &str) -> Self {
        let name = format!("AGENTAREA_{}", key.replace('.', "__").to_uppercase());
        let value = value.trim_matches('"').to_owned();
        self.variables.retain(|(known, _)| *known != name);
        self.variables.push((name, value));
        self
    }

    /// With probes as rare and as patient as they are by default.
    #[cfg(all(feature = "redis", feature = "temporal", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn with_default_probes(mut self) -> Self {
        self.variables.retain(|(name, _)| !name.contains("__PROBE__"));
        self
    }

    /// Sets a variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds arguments.
    pub(crate) fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the configuration file of its environment.
    pub(crate) fn write_config(&self, text: &str) {
        let folder = self.path().join("config");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("development.toml"), text).unwrap();
    }

    /// Runs another program than this one.
    #[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn program(mut self, path: &str) -> Self {
        path.clone_into(&mut self.program);
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .current_dir(self.path())
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end; gives all that it printed.
    pub(crate) async fn output(&self) -> Output {
        self.output_of(&[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn output_of(&self, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.command());
        command.args(arguments).kill_on_drop(true);
        tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends in time").unwrap()
    }

    pub(crate) fn spawn(&self) -> (Child, PathBuf) {
        let log = self.path().join("log");
        // That of an earlier start is kept.
        let files = fs::read_dir(self.path()).unwrap().count();
        let _first = fs::rename(&log, log.with_extension(files.to_string())).is_err();
        let child = self
            .command()
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        (child, log)
    }

    /// Starts the program and waits until it listens.
    pub(crate) async fn start(self) -> Service {
        let (child, log) = self.spawn();
        self.listening(child, log).await
    }

    /// The same with log files in place of standard error.
    pub(crate) async fn start_with_log_files(self) -> Service {
        let setup =
            self.set("telemetry.log_dir", "\"logs\"").set("telemetry.log_rotation", "\"never\"");
        let (child, _empty) = setup.spawn();
        let log = setup.path().join("logs/agentarea-api.log");
        setup.listening(child, log).await
    }

    async fn listening(self, child: Child, log: PathBuf) -> Service {
        agentarea_api::tls::install_provider();
        // Made first, so that the process ends with it whatever happens next.
        let mut service =
            Service { setup: self, child, log, base: String::new(), http: Client::new() };
        service.base = eventually("the service listens", async || {
            let text = service.log();
            if let Some(status) = service.child.try_wait().unwrap() {
                panic!("it ended with {status}:\n{text}");
            }
            let (_, rest) = text.split_once("listening on ")?;
            // The line may be half written.
            Some(rest.split_once([',', ' ', '"'])?.0.to_owned())
        })
        .await;
        service
    }

    /// Runs the program to its end.
    pub(crate) async fn run(self) -> (Option<i32>, String) {
        let (mut child, log) = self.spawn();
        let status = ended(&mut child).await;
        (status.code(), fs::read_to_string(log).unwrap())
    }
}

/// A running program.
pub(crate) struct Service {
    setup: Setup,
    pub(crate) child: Child,
    log: PathBuf,
    pub(crate) base: String,
    pub(crate) http: Client,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_dead = self.child.kill().is_err();
        let _reaped = self.child.wait().is_ok();
        if std::thread::panicking() {
            eprintln!("--- log of the service\n{}", self.log());
        }
    }
}

impl Service {
    /// The folder it runs in.
    pub(crate) fn path(&self) -> &Path {
        self.setup.path()
    }

    /// Writes the configuration file anew.
    pub(crate) fn write_config(&self, text: &str) {
        self.setup.write_config(text);
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.base))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.http.post(format!("{}{path}", self.base))
    }

    pub(crate) fn put(&self, path: &str) -> RequestBuilder {
        self.http.put(format!("{}{path}", self.base))
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        self.get(path).send().await.unwrap().json().await.unwrap()
    }

    /// Posts JSON; gives status and answer.
    pub(crate) async fn send(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        answer(self.post(path).json(body)).await
    }

    /// Waits until `/health` is as wanted.
    pub(crate) async fn health(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || {
            let health = self.json("/health").await;
            wanted(&health).then_some(health)
        })
        .await
    }

    /// Waits until it is healthy with every connection made.
    pub(crate) async fn healthy(&self) {
        let made = |health: &Value| {
            let services = health["connections"]["services"].as_object();
            services.is_some_and(|services| services.values().all(|state| state == "initialized"))
        };
        let wanted = |health: &Value| health["status"] == "healthy" && made(health);
        self.health("the service is healthy", wanted).await;
    }

    /// Starts an execution; gives its id.
    pub(crate) async fn execute(&self, body: &Value) -> String {
        let (status, execution) = self.send("/v1/executions", body).await;
        assert_eq!(status, 202, "{execution}");
        execution["id"].as_str().unwrap().to_owned()
    }

    /// Waits for an execution to end.
    pub(crate) async fn result(&self, id: &str) -> Value {
        let mut last = Value::Null;
        let ended = async || {
            last = self.json(&format!("/v1/executions/{id}?wait=5s")).await;
            let open = [json!("accepted"), json!("running"), Value::Null];
            (!open.contains(&last["status"])).then(|| last.clone())
        };
        match tokio::time::timeout(DEADLINE, eventually("the execution ends", ended)).await {
            Ok(execution) => execution,
            Err(elapsed) => panic!("the execution does not end, {elapsed}: {last}"),
        }
    }

    /// Follows the event stream.
    pub(crate) async fn follow(&self, query: &str, last_event_id: Option<&str>) -> Events {
        let mut request = self.get(&format!("/v1/events/stream{query}"));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        Events { response, buffer: String::new() }
    }

    /// Kills it without warning; gives what another start needs.
    pub(crate) fn kill(mut self) -> Setup {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.setup, Setup::bare())
    }

    /// Waits for it to end; gives the exit code.
    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        ended(&mut self.child).await.code()
    }
}

/// Sends a request; gives status and answer.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let response = request.send().await.unwrap();
    let status = response.status();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// What a metric says of the events of the outbox.
pub(crate) async fn metric(service: &Service, name: &str) -> f64 {
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let series = format!("{name}{{destination=\"event_broker\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.unwrap_or_else(|| panic!("{series} is missing in\n{text}")).parse().unwrap()
}

/// Refused for want of room, with the time after which trying again makes sense.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) async fn is_overloaded(response: reqwest::Response) {
    assert_eq!(response.status(), 503);
    let seconds = response.headers()["retry-after"].to_str().unwrap().parse::<u64>();
    assert!(seconds.is_ok_and(|seconds| seconds >= 1));
    let problem: Value = response.json().await.unwrap();
    assert!(problem["type"].as_str().unwrap().ends_with("overloaded"), "{problem}");
}

/// An event of a client; `n` counts those of its subject.
pub(crate) fn cloud_event(subject: &str, n: usize) -> Value {
    json!({"specversion": "1.0", "id": format!("{subject}-{n}"), "source": "ledger", "type": "t",
        "subject": subject, "data": n})
}

pub(crate) async fn send_cloud_event(service: &Service, event: &Value) -> (u16, Value) {
    let request = service
        .post("/v1/events")
        .header("content-type", "application/cloudevents+json")
        .body(event.to_string());
    let (status, body) = answer(request).await;
    (status.as_u16(), body)
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) name: Option<String>,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// A client of the event stream.
pub(crate) struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    /// The next event; none when the stream has ended.
    pub(crate) async fn try_next(&mut self) -> Option<Sent> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                if let Some(sent) = parse(&block) {
                    return Some(sent);
                }
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk()).await;
            let chunk = chunk.expect("the stream says something in time").ok()??;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    pub(crate) async fn next(&mut self) -> Sent {
        self.try_next().await.expect("the stream goes on")
    }

    /// The next `count` events' ids (of the events, not of the stream).
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.next().await.data["id"].as_str().unwrap().to_owned());
        }
        ids
    }
}

fn parse(block: &str) -> Option<Sent> {
    let (mut name, mut id, mut data) = (None, None, String::new());
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("event", value)) => name = Some(value.to_owned()),
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("data", value)) => data.push_str(value),
            _ => {}
        }
    }
    (!data.is_empty()).then(|| Sent { name, id, data: serde_json::from_str(&data).unwrap() })
}

/// A variable that `scripts/servers` sets.
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are")]
pub(crate) fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run `scripts/servers start DIR` and `source DIR/env`")
    })
}

/// A `PostgreSQL` database of its own for one test.
#[cfg(feature = "postgres")]
pub(crate) struct Database {
    server: String,
    name: String,
}

#[cfg(feature = "postgres")]
impl Database {
    pub(crate) async fn create() -> Self {
        Self::create_on(server("TEST_DATABASE_URL")).await
    }

    /// On the server of this URL.
    pub(crate) async fn create_on(server: String) -> Self {
        let name = format!("it_{}", uuid::Uuid::now_v7().simple());
        let database = Self { server, name };
        database.execute(&format!("CREATE DATABASE {}", database.name)).await;
        database
    }

    /// `host:port` of the server.
    pub(crate) fn address(&self) -> &str {
        let (_, rest) = self.server.rsplit_once('@').unwrap();
        rest.split_once('/').unwrap().0
    }

    pub(crate) fn url(&self) -> String {
        let (base, _database) = self.server.rsplit_once('/').unwrap();
        format!("{base}/{}", self.name)
    }

    /// The name of the database.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The number that a query inside the database gives.
    pub(crate) async fn value(&self, query: &str) -> i64 {
        let (client, connection) =
            tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await.unwrap();
        let drive = async {
            let _ended = connection.await.is_ok();
        };
        let ask = async {
            let row = client.query_one(query, &[]).await.unwrap();
            drop(client);
            row.get(0)
        };
        tokio::join!(drive, ask).1
    }

    /// Executes a statement inside the database.
    pub(crate) async fn within(&self, statement: &str) {
        Self::execute_at(&self.url(), statement).await;
    }

    /// Executes a statement outside the database.
    pub(crate) async fn execute(&self, statement: &str) {
        Self::execute_at(&self.server, statement).await;
    }

    async fn execute_at(url: &str, statement: &str) {
        let (client, connection) =
            tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        let drive = async {
            let _ended = connection.await.is_ok();
        };
        let run = async {
            client.batch_execute(statement).await.unwrap();
            drop(client);
        };
        tokio::join!(drive, run);
    }

    pub(crate) async fn drop(self) {
        self.execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

/// What a [`Link`] does with what it should carry.
#[cfg(feature = "postgres")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Passing {
    /// Carries it.
    Open,
    /// Closes every connection at once.
    Cut,
    /// Resets every connection at once, as a peer does that has forgotten it.
    Reset,
    /// Keeps every connection and carries nothing, as a firewall does that drops packets.
    Stalled,
}

/// A TCP link to a server, to be cut, stalled and restored. A connection that was stalled is never
/// heard of again, as behind a firewall that has forgotten it; the peers have to make a new one.
#[cfg(feature = "postgres")]
pub(crate) struct Link {
    /// `host:port` to connect to.
    pub(crate) address: String,
    passing: watch::Sender<Passing>,
    _carrying: JoinSet<()>,
}

#[cfg(feature = "postgres")]
impl Link {
    pub(crate) async fn to(server: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (passing, seen) = watch::channel(Passing::Open);
        let mut carrying = JoinSet::new();
        carrying.spawn(carry_all(listener, server.to_owned(), seen));
        Self { address, passing, _carrying: carrying }
    }

    pub(crate) fn set(&self, passing: Passing) {
        self.passing.send_replace(passing);
    }
}

#[cfg(feature = "postgres")]
async fn carry_all(
    listener: tokio::net::TcpListener,
    server: String,
    passing: watch::Receiver<Passing>,
) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        connections.spawn(carry(near, server.clone(), passing.clone()));
    }
}

#[cfg(feature = "postgres")]
async fn carry(mut near: TcpStream, server: String, mut passing: watch::Receiver<Passing>) {
    let mut far = None;
    if *passing.borrow_and_update() == Passing::Open {
        let carry = async {
            let far = far.insert(TcpStream::connect(server).await?);
            copy_bidirectional(&mut near, far).await
        };
        tokio::select! {
            _ended = carry => return,
            _changed = passing.changed() => {}
        }
    }
    let ends = |passing: &Passing| matches!(passing, Passing::Cut | Passing::Reset);
    if passing.wait_for(ends).await.is_ok_and(|passing| *passing == Passing::Reset) {
        for peer in [Some(near), far].into_iter().flatten() {
            peer.set_zero_linger().unwrap();
        }
    }
}

/// A Redis of its own, to be stopped and started.
#[cfg(feature = "redis")]
pub(crate) struct Redis {
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

#[cfg(feature = "redis")]
impl Redis {
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With further arguments, such as `--requirepass x`.
    pub(crate) async fn start_with(arguments: &str) -> Self {
        let mut redis = Self {
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            child: None,
        };
        redis.up().await;
        redis
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub(crate) async fn up(&mut self) {
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "yes", "--dir"])
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is missing: apt-get install -y redis-server");
        self.child = Some(child);
        eventually("Redis listens", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok()
        })
        .await;
    }

    /// Kills it and starts it again with further arguments in place of those it had.
    pub(crate) async fn restart_with(&mut self, arguments: &str) {
        self.down();
        self.arguments = arguments.split_whitespace().map(str::to_owned).collect();
        self.arguments.extend(["--appendonly".to_owned(), "no".to_owned()]);
        self.up().await;
    }

    /// What it answers to a command.
    pub(crate) async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await.unwrap()
    }

    pub(crate) fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// What it has written is no more when it is up again.
    pub(crate) fn forget_everything(&mut self) {
        self.down();
        self.folder = tempfile::tempdir().unwrap();
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        signal(self.child.as_ref().unwrap(), if frozen { "-STOP" } else { "-CONT" });
    }
}

#[cfg(feature = "redis")]
impl Drop for Redis {
    fn drop(&mut self) {
        self.down();
    }
}
