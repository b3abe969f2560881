//! The stream in Redis: for any number of processes.
//!
//! Commands of all callers share one multiplexed connection, because that is several times faster
//! than a pooled one per call. Blocking reads would hold up everybody on it, so each has a pooled
//! connection to itself; probes have their own as well, so that they measure the server and not
//! the queue.

mod agentarea;
mod link;
mod translate;

use std::{collections::HashMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use deadpool_redis::Manager;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Script,
    TlsCertificates, io::tcp::TcpSettings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use self::{
    agentarea::{APPEND_AND_PUBLISH, envelope},
    link::{Connector, Exclusive, Line},
    translate::translate,
};
use super::{EventBroker, FAMILY, REDIS_VARIABLES};
use crate::{
    backends::{
        login::{Credentials, Login},
        pool::Pool,
    },
    config::{BackendConfig, BackendDescriptor, Secret, Section, Table, TableProblem},
    connection::{Backend, BuildContext, Factory as BackendFactory, PoolStatus},
    error::{Error, ErrorKind},
    model::{
        events::{Event, Position, Range, StoredEvent},
        time,
    },
    tls,
};

/// The field of a stream's entry that holds the event.
const FIELD: &str = "event";
/// The first version that can read a stream from behind an id.
const OLDEST_SERVER: (u32, u32) = (6, 2);
/// How long the key of a probe outlives it.
const PROBE_KEY_SECONDS: u64 = 60;
/// A connection is given up after so many calls in a row that were dropped without an answer: a
/// link that died silently would otherwise swallow calls for as long as the system waits.
const PATIENCE: u32 = 3;

/// A Redis stream, for any number of instances. Needs Redis 6.2 or newer, or a server that speaks
/// its language, such as Valkey.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// Address, such as `redis://user:password@host:6379/0`, its last part the number of the
    /// database. `rediss://` is TLS, with a certificate that fits the host name and comes from
    /// `ca_file`, or from a public authority if that is unset. `unix:///path` is a local socket.
    url: Secret,
    /// The password, if it does not stand in `url`; it wins over one that does.
    password: Option<Secret>,
    /// PEM file with the authorities that are trusted instead of the public ones; only with
    /// `rediss://`.
    ca_file: Option<PathBuf>,
    /// The key of the stream. All instances that share events need the same; whoever shares the
    /// database with another deployment needs another.
    stream: String,
    /// About so many events are kept for readers that resume; older ones are trimmed whenever one
    /// is appended. Redis holds them in memory: a million events of 1 KiB take more than 1 GiB.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    max_events: u64,
    /// `cloudevents`: events are appended to the stream. `agentarea`: each is also published, in
    /// `AgentArea`'s envelope, on the channel named like its type. Nobody resumes from a channel, so
    /// subscribers that are away miss events.
    wire: Wire,
}

/// What is written besides the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Wire {
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
            stream: "agentarea:events".to_owned(),
            max_events: 1_000_000,
            wire: Wire::CloudEvents,
        }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        let mut problems = Vec::new();
        // The parser's message can repeat parts of the URL, so it is not shown.
        match self.url.expose().into_connection_info() {
            Err(_) => problems.push((
                "url",
                "cannot be read; expected redis://user:password@host:6379/0, or rediss:// for TLS"
                    .to_owned(),
            )),
            Ok(info) => match info.addr() {
                ConnectionAddr::TcpTls { insecure: true, .. } => problems.push((
                    "url",
                    "certificates are always checked: name their authority in ca_file instead of \
                     #insecure"
                        .to_owned(),
                )),
                ConnectionAddr::TcpTls { .. } => {}
                _ if self.ca_file.is_some() => {
                    problems
                        .push(("ca_file", "has no effect without TLS: use rediss://".to_owned()));
                }
                _ => {}
            },
        }
        if self.stream.is_empty() {
            problems.push(("stream", "needs a name, such as \"agentarea:events\"".to_owned()));
        }
        problems
    }

    fn address(&self) -> String {
        let Ok(info) = self.url.expose().into_connection_info() else { return String::new() };
        let with_tls =
            if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) { " with TLS" } else { "" };
        // Without the user and the password that `info` holds as well.
        format!("{}/{}{with_tls}", info.addr(), info.redis_settings().db())
    }
}

impl Config {
    /// What a connection needs to know.
    fn client(&self) -> Result<Client, Error> {
        let info = self.url.expose().into_connection_info().map_err(|_| {
            Error::new(ErrorKind::Internal, "the url cannot be read, which its check rules out")
        })?;
        let mut login = info
            .redis_settings()
            .clone()
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(password) = &self.password {
            login = login.set_password(password.expose());
        }
        // Keeps idle connections alive through routers that forget them, and notices a dead peer.
        let keepalive = redis::io::tcp::socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(15))
            .with_interval(Duration::from_secs(5));
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        self.with_authorities(info.set_redis_settings(login).set_tcp_settings(tcp))
    }

    fn with_authorities(&self, info: ConnectionInfo) -> Result<Client, Error> {
        tls::install_provider();
        let Some(path) = &self.ca_file else {
            return Client::open(info).map_err(|error| translate(&error));
        };
        let unusable = |error: &dyn fmt::Display| {
            let message = format!("ca_file {} cannot be used: {error}", path.display());
            Error::new(ErrorKind::Tls, message)
        };
        // The driver takes a file without any certificate, and then refuses every server.
        tls::certificates(path)
            .map_err(|error| Error::new(ErrorKind::Tls, format!("ca_file {error}")))?;
        let root_cert = Some(std::fs::read(path).map_err(|error| unusable(&error))?);
        let certificates = TlsCertificates { client_tls: None, root_cert };
        Client::build_with_tls(info, certificates).map_err(|error| unusable(&error))
    }
}

/// Who we are to the server, and how it is reached.
#[derive(Clone)]
struct Access {
    config: Config,
    settings: AsyncConnectionConfig,
}

impl Credentials for Access {
    type Ready = Manager;

    fn secrets(&mut self) -> Vec<&mut Secret> {
        std::iter::once(&mut self.config.url).chain(&mut self.config.password).collect()
    }

    fn ready(&self) -> Result<Manager, Error> {
        let address = self.config.client()?.get_connection_info().clone();
        Manager::new_with_config(address, self.settings.clone()).map_err(|error| translate(&error))
    }
}

pub(super) struct Factory;

#[async_trait]
impl BackendFactory<dyn EventBroker> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "redis",
            variables: &REDIS_VARIABLES,
            shared: true,
            example: "REDIS_URL=redis://redis:6379",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn EventBroker>, Error> {
        let broker = RedisBroker::new(section.read()?, context)?;
        // The probe finds out what a server that answers may still refuse.
        tokio::try_join!(broker.probe(), broker.check_version())?;
        Ok(Arc::new(broker))
    }
}

/// Keeps the events in a stream of Redis.
struct RedisBroker {
    config: Config,
    script: Script,
    commands: Line,
    probes: Line,
    probe_key: String,
    /// For blocking reads.
    pool: Pool<Connector>,
    connect_timeout: Duration,
}

impl fmt::Debug for RedisBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBroker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl RedisBroker {
    fn new(config: Config, context: &BuildContext) -> Result<Self, Error> {
        let connect_timeout = context.pool.connect_timeout;
        // The default ends every answer after half a second. The guard bounds calls, and blocking
        // reads bound themselves.
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect_timeout))
            .set_response_timeout(None);
        let access = Access { config: config.clone(), settings };
        let login = Arc::new(Login::new(context.connection, access)?);
        Ok(Self {
            script: Script::new(APPEND_AND_PUBLISH),
            commands: Line::new(Arc::clone(&login), PATIENCE),
            probes: Line::new(Arc::clone(&login), 1),
            probe_key: format!("agentarea:probe:{}", context.instance),
            pool: Pool::new(Arc::new(Connector(login)), context)?,
            connect_timeout,
            config,
        })
    }

    async fn check_version(&self) -> Result<(), Error> {
        let asked = self.commands.query::<String>(redis::cmd("INFO").arg("server")).await;
        let information = match asked {
            Ok(information) => information,
            // Who may not ask may still use the stream.
            Err(error) if error.kind() == ErrorKind::Forbidden => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(version) = information.lines().find_map(|l| l.strip_prefix("redis_version:"))
        else {
            return Ok(());
        };
        let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
        let (oldest, minor) = OLDEST_SERVER;
        match (parts.next(), parts.next()) {
            (Some(a), Some(b)) if (a, b) < OLDEST_SERVER => Err(Error::new(
                ErrorKind::Incompatible,
                format!("the server is version {version}, older than {oldest}.{minor}"),
            )),
            _ => Ok(()),
        }
    }

    fn append(&self, event: &Event) -> Cmd {
        let mut command = redis::cmd("XADD");
        command.arg(&self.config.stream).arg("MAXLEN").arg("~").arg(self.config.max_events);
        command.arg("*").arg(FIELD).arg(event.to_json());
        command
    }

    async fn publish_to_agentarea(&self, events: &[Event]) -> Result<(), Error> {
        let mut call = self.script.key(&self.config.stream);
        call.arg(self.config.max_events);
        for event in events {
            call.arg(event.to_json()).arg(&event.kind).arg(envelope(event));
        }
        self.commands
            .call(|mut connection| async move { call.invoke_async::<()>(&mut connection).await })
            .await
    }

    /// One page of the stream after `place`, waiting for it up to `wait`.
    async fn blocking_page(
        &self,
        place: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Page, Error> {
        let mut connection = Exclusive::take(&self.pool, wait).await?;
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(limit);
        // Rounded up, because 0 would wait for ever.
        let millis = u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        if millis > 0 {
            command.arg("BLOCK").arg(millis);
        }
        command.arg("STREAMS").arg(&self.config.stream).arg(place.to_string());
        let answer = connection.query::<Option<Vec<(String, Entries)>>>(&command);
        let Ok(answer) = timeout(wait + self.connect_timeout, answer).await else {
            let message = "a blocking read was not answered in time";
            return Err(Error::new(ErrorKind::Timeout, message));
        };
        let streams = answer?.unwrap_or_default();
        connection.give_back();
        Ok(Page::of(streams.into_iter().flat_map(|(_, entries)| entries)))
    }
}

#[async_trait]
impl Backend for RedisBroker {
    async fn probe(&self) -> Result<(), Error> {
        let sent = time::now().to_string();
        let mut pipeline = redis::pipe();
        let key = &self.probe_key;
        pipeline.cmd("SET").arg(key).arg(&sent).arg("EX").arg(PROBE_KEY_SECONDS).ignore();
        pipeline.cmd("GET").arg(key);
        let (read,): (Option<String>,) = self
            .probes
            .call(|mut connection| async move { pipeline.query_async(&mut connection).await })
            .await?;
        if read.as_ref() != Some(&sent) {
            let message = "the server has lost what the probe has just written";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(())
    }

    async fn close(&self) {
        self.pool.close();
        self.commands.close();
        self.probes.close();
    }

    fn pool(&self) -> Option<PoolStatus> {
        Some(self.pool.status())
    }
}

#[async_trait]
impl EventBroker for RedisBroker {
    async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        match (self.config.wire, events) {
            (_, []) => Ok(()),
            (Wire::AgentArea, events) => self.publish_to_agentarea(events).await,
            (Wire::CloudEvents, [event]) => self.commands.query(&self.append(event)).await,
            (Wire::CloudEvents, events) => {
                let mut transaction = redis::pipe();
                transaction.atomic();
                for event in events {
                    transaction.add_command(self.append(event)).ignore();
                }
                self.commands
                    .call(|mut connection| async move {
                        transaction.query_async::<()>(&mut connection).await
                    })
                    .await
            }
        }
    }

    async fn range(&self) -> Result<Range, Error> {
        let mut command = redis::cmd("XINFO");
        command.arg("STREAM").arg(&self.config.stream);
        let asked = self.commands.query::<HashMap<String, redis::Value>>(&command).await;
        let mut information = match asked {
            Err(error) if error.kind() == ErrorKind::Missing => {
                return Ok(Range { complete_after: Position::START, newest: Position::START });
            }
            asked => asked?,
        };
        let mut take = |key: &str| information.remove(key).unwrap_or(redis::Value::Nil);
        let newest = redis::from_redis_value::<String>(take("last-generated-id"))
            .ok()
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| {
                let message = "the answer about the stream does not name its last id";
                Error::new(ErrorKind::Incompatible, message)
            })?;
        // Redis 7 counts what was ever added, so a stream that nobody has trimmed yet is known to
        // be whole. `max-deleted-entry-id` does not tell: trimming leaves it alone. After a flush
        // the count begins anew, and nothing is left that knows of the stream before.
        let mut count = |key: &str| redis::from_redis_value::<u64>(take(key)).ok();
        let (length, added) = (count("length"), count("entries-added"));
        if length.is_some() && length == added {
            return Ok(Range { complete_after: Position::START, newest });
        }
        let first = redis::from_redis_value::<Option<(String, redis::Value)>>(take("first-entry"));
        let first = first.ok().flatten().and_then(|(id, _)| id.parse().ok());
        Ok(Range { complete_after: first.map_or(newest, Position::before), newest })
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<StoredEvent>, Error> {
        let mut found = Vec::new();
        let mut place = after;
        // A page can consist of entries that somebody else wrote and that are no events, so only
        // a short one means the end.
        while found.len() < limit {
            let mut command = redis::cmd("XRANGE");
            command.arg(&self.config.stream).arg(format!("({place}")).arg("+");
            command.arg("COUNT").arg(limit);
            let entries: Entries = self.commands.query(&command).await?;
            let whole = entries.len() == limit;
            let page = Page::of(entries);
            found.extend(page.events);
            match page.end {
                Some(end) if whole => place = end,
                _ => break,
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn wait(
        &self,
        after: Position,
        limit: usize,
        wait: Duration,
    ) -> Result<Vec<StoredEvent>, Error> {
        let deadline = Instant::now() + wait;
        let mut place = after;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let page = self.blocking_page(place, limit, left).await?;
            if !page.events.is_empty() || left.is_zero() {
                return Ok(page.events);
            }
            place = page.end.unwrap_or(place);
        }
    }
}

/// An entry's fields and values; bytes, because anybody can write anything there.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;
type Entries = Vec<(String, Fields)>;

/// Consecutive entries: the events among them, and the place of the last.
struct Page {
    events: Vec<StoredEvent>,
    end: Option<Position>,
}

impl Page {
    fn of(entries: impl IntoIterator<Item = (String, Fields)>) -> Self {
        let mut page = Self { events: Vec::new(), end: None };
        for (id, fields) in entries {
            let Ok(position) = id.parse() else { continue };
            page.end = Some(position);
            let event = fields.into_iter().find(|(name, _)| name == FIELD.as_bytes());
            if let Some(json) = event.and_then(|(_, value)| String::from_utf8(value).ok()) {
                page.events.push(StoredEvent { position, json: json.into() });
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    mod over_tls;

    use std::{
        net::{SocketAddr, TcpListener},
        process::{Child, Command, Stdio},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::StreamExt;
    use redis::aio::MultiplexedConnection;
    use serde_json::{Value, json};
    use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        backends::{
            event_broker::contract,
            test_server::{SecretFile, relay},
        },
        config::Pool as Limits,
        model::ids,
        telemetry::metrics::Metrics,
    };

    #[expect(clippy::disallowed_methods, reason = "a test's own variable is no configuration")]
    fn server() -> String {
        std::env::var("TEST_REDIS_URL").expect(
            "set TEST_REDIS_URL to a Redis server for tests: `scripts/servers start DIR` \
             starts one (its program comes with `apt-get install -y redis-server`)",
        )
    }

    /// A stream of this test alone, deleted at its end.
    struct Scratch {
        url: String,
        stream: String,
    }

    impl Scratch {
        fn new() -> Self {
            Self { url: server(), stream: format!("test:{}", ids::new_id()) }
        }

        async fn connect(&self) -> MultiplexedConnection {
            let client = Client::open(self.url.as_str()).unwrap();
            client.get_multiplexed_async_connection().await.unwrap()
        }

        async fn run(&self, command: &str) -> redis::Value {
            run(&self.url, &command.replace('$', &self.stream)).await
        }

        async fn broker(&self, more: Value) -> Arc<dyn EventBroker> {
            let mut section = json!({"url": self.url, "stream": self.stream});
            section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            build(section).await.unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let mut connection = Client::open(self.url.as_str()).unwrap().get_connection().unwrap();
            redis::cmd("DEL").arg(&self.stream).exec(&mut connection).unwrap();
        }
    }

    async fn run(url: &str, command: &str) -> redis::Value {
        let client = Client::open(url).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut words = command.split_whitespace();
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query_async(&mut connection).await.unwrap()
    }

    fn context() -> BuildContext {
        let limits = Limits { connect_timeout: Duration::from_secs(2), ..Limits::default() };
        context_with(limits, &Metrics::new("test", "test"))
    }

    fn context_with(pool: Limits, metrics: &Metrics) -> BuildContext {
        BuildContext {
            connection: FAMILY,
            instance: ids::new_id().into(),
            pool,
            metrics: metrics.connection(FAMILY),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    async fn build(section: Value) -> Result<Arc<dyn EventBroker>, Error> {
        Factory.build(&Section(section), &context()).await
    }

    async fn failure(section: Value) -> Error {
        build(section).await.expect_err("the broker is not made")
    }

    fn event(n: usize) -> Event {
        Event::new("test.event", Some("subject".to_owned()), Some(json!({"n": n})))
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// A server of this test alone.
    struct Server {
        child: Child,
        port: u16,
        _dir: tempfile::TempDir,
    }

    impl Server {
        async fn start(port: u16, arguments: &[&str]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let child = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
                .args(arguments)
                .current_dir(dir.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server runs: `apt-get install -y redis-server`");
            let server = Self { child, port, _dir: dir };
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                sleep(Duration::from_millis(10)).await;
            }
            server
        }

        fn url(&self) -> String {
            format!("redis://127.0.0.1:{}", self.port)
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn the_redis_broker_fulfils_the_contract() {
        let scratch = Scratch::new();
        contract::suite(scratch.broker(json!({})).await).await;
    }

    #[tokio::test]
    async fn the_contract_holds_with_agentarea_s_envelope() {
        let scratch = Scratch::new();
        contract::suite(scratch.broker(json!({"wire": "agentarea"})).await).await;
    }

    #[tokio::test]
    async fn the_contract_holds_over_resp3() {
        let scratch = Scratch::new();
        let url = format!("{}/?protocol=resp3", scratch.url);
        contract::suite(scratch.broker(json!({"url": url})).await).await;
    }

    #[tokio::test]
    async fn agentarea_s_subscribers_hear_of_each_event_of_a_batch() {
        let scratch = Scratch::new();
        let broker = scratch.broker(json!({"wire": "agentarea"})).await;
        let client = Client::open(scratch.url.as_str()).unwrap();
        let mut subscriber = client.get_async_pubsub().await.unwrap();
        let kind = format!("test.{}", scratch.stream);
        subscriber.subscribe(&kind).await.unwrap();
        let batch: Vec<Event> = (0..3).map(|n| Event { kind: kind.clone(), ..event(n) }).collect();
        broker.publish(&batch).await.unwrap();
        let heard: Vec<redis::Msg> = subscriber.on_message().take(3).collect().await;
        for (event, message) in batch.iter().zip(&heard) {
            assert_eq!(message.get_channel_name(), kind);
            let outer: Value = serde_json::from_slice(message.get_payload_bytes()).unwrap();
            assert_eq!(outer["headers"]["correlation_id"], event.id.as_str());
        }
        let stored = broker.read(Position::START, 9).await.unwrap();
        assert_eq!(stored.len(), 3);
    }

    #[tokio::test]
    async fn a_forbidden_channel_does_not_keep_events_from_the_stream() {
        let server = Server::start(free_port(), &[]).await;
        run(&server.url(), "ACL SETUSER app on >secret ~* +@all resetchannels").await;
        let url = format!("redis://app:secret@127.0.0.1:{}", server.port);
        let broker = build(json!({"url": url, "wire": "agentarea"})).await.unwrap();
        broker.publish(&[event(1), event(2)]).await.unwrap();
        assert_eq!(broker.read(Position::START, 9).await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_server_with_a_password_wants_it() {
        let server = Server::start(free_port(), &["--requirepass", "s3cret"]).await;
        let url = server.url();
        let none = failure(json!({"url": url})).await;
        assert_eq!(none.kind(), ErrorKind::Unauthenticated, "{none}");
        let other = failure(json!({"url": format!("{url}/1")})).await;
        assert_eq!(other.kind(), ErrorKind::Unauthenticated, "{other}");
        let wrong = failure(json!({"url": url, "password": "hunter2"})).await;
        assert_eq!(wrong.kind(), ErrorKind::Unauthenticated, "{wrong}");
        assert!(!wrong.to_string().contains("hunter2"));
        let broker = build(json!({"url": url, "password": "s3cret"})).await.unwrap();
        assert!(!format!("{broker:?}").contains("s3cret"));
    }

    /// Something that listens and speaks another language.
    async fn plain() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        TaskTracker::new().spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_server_is_told() {
        let replica = Server::start(free_port(), &["--replicaof", "127.0.0.1 1"]).await;
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("redis://{}", silent.local_addr().unwrap());
        for (url, expected) in [
            (replica.url(), ErrorKind::ReadOnly),
            (format!("{}/99", server()), ErrorKind::Missing),
            (format!("redis://127.0.0.1:{}", free_port()), ErrorKind::Refused),
            ("redis://no-such-host.invalid".to_owned(), ErrorKind::NameNotFound),
            (silent, ErrorKind::Timeout),
            (format!("rediss://{}", plain().await), ErrorKind::Tls),
            (format!("redis://{}", plain().await), ErrorKind::Incompatible),
            ("unix:///no/such/socket".to_owned(), ErrorKind::Refused),
        ] {
            let error = failure(json!({"url": url})).await;
            assert_eq!(error.kind(), expected, "{url}: {error}");
            assert!(!error.outcome_unknown(), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn the_range_tells_what_is_gone() {
        let scratch = Scratch::new();
        let broker = scratch.broker(json!({"max_events": 100})).await;
        let missing = broker.range().await.unwrap();
        assert_eq!((missing.complete_after, missing.newest), (Position::START, Position::START));

        broker.publish(&(0..350).map(event).collect::<Vec<_>>()).await.unwrap();
        let range = broker.range().await.unwrap();
        let kept = broker.read(Position::START, 1000).await.unwrap();
        assert!((100..350).contains(&kept.len()), "{} were kept", kept.len());
        assert!(!range.can_resume_after(Position::START));
        assert!(range.can_resume_after(kept[0].position));
        let all = broker.read(range.complete_after, 1000).await.unwrap();
        assert_eq!(all.len(), kept.len());

        scratch.run("XTRIM $ MAXLEN 0").await;
        let emptied = broker.range().await.unwrap();
        assert_eq!(emptied, Range { complete_after: range.newest, newest: range.newest });
        broker.publish(&[event(1)]).await.unwrap();
        let refilled = broker.range().await.unwrap();
        assert!(!refilled.can_resume_after(missing.newest));
        assert!(refilled.complete_after >= range.newest);
    }

    #[tokio::test]
    async fn a_stream_that_was_never_trimmed_is_whole_from_its_start() {
        let scratch = Scratch::new();
        let broker = scratch.broker(json!({})).await;
        let begin = broker.range().await.unwrap().newest;
        broker.publish(&[event(1), event(2)]).await.unwrap();
        assert!(broker.range().await.unwrap().can_resume_after(begin));
    }

    #[tokio::test]
    async fn foreign_entries_are_skipped_and_stall_nobody() {
        let scratch = Scratch::new();
        let broker = scratch.broker(json!({})).await;
        let mut connection = scratch.connect().await;
        for n in 0..25 {
            let mut foreign = redis::cmd("XADD");
            foreign.arg(&scratch.stream).arg("*").arg(&[0xff_u8, n]).arg(&[0xfe_u8]);
            foreign.arg("event").arg(&[0xff_u8]);
            foreign.exec_async(&mut connection).await.unwrap();
        }
        let foreign = broker.range().await.unwrap().newest;
        assert!(broker.read(Position::START, 10).await.unwrap().is_empty());
        let short = Duration::from_millis(20);
        assert!(broker.wait(Position::START, 10, short).await.unwrap().is_empty());
        broker.publish(&[event(1)]).await.unwrap();
        let read = broker.read(Position::START, 10).await.unwrap();
        assert!(read.len() == 1 && read[0].position > foreign);
        let waited = broker.wait(Position::START, 10, Duration::from_secs(9)).await.unwrap();
        assert_eq!(waited[0].position, read[0].position);
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_leaves_nothing() {
        let scratch = Scratch::new();
        scratch.run("SET $ text").await;
        for wire in ["cloudevents", "agentarea"] {
            let broker = scratch.broker(json!({"wire": wire})).await;
            for batch in [vec![event(1)], vec![event(1), event(2)]] {
                let error = broker.publish(&batch).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
            }
            assert_eq!(broker.range().await.unwrap_err().kind(), ErrorKind::Incompatible);
        }
    }

    #[tokio::test]
    async fn a_dropped_wait_takes_its_connection_with_it() {
        let scratch = Scratch::new();
        let broker = scratch.broker(json!({})).await;
        let hour = Duration::from_hours(1);
        let waiting = timeout(Duration::from_millis(50), broker.wait(Position::START, 1, hour));
        assert!(waiting.await.is_err());
        let pool = broker.pool().unwrap();
        assert_eq!((pool.in_use, pool.idle), (0, 0));
        broker.publish(&[event(1)]).await.unwrap();
        assert_eq!(broker.wait(Position::START, 1, hour).await.unwrap().len(), 1);
        assert_eq!(broker.pool().unwrap().idle, 1);
    }

    #[tokio::test]
    async fn a_server_that_returns_is_used_by_the_very_next_call() {
        let port = free_port();
        let server = Server::start(port, &[]).await;
        let broker = build(json!({"url": server.url()})).await.unwrap();
        broker.publish(&[event(1)]).await.unwrap();
        drop(server);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            kinds.push(broker.publish(&[event(2)]).await.unwrap_err().kind());
            assert!(broker.probe().await.is_err());
        }
        assert_eq!(kinds[1..], [ErrorKind::Refused; 2], "{kinds:?}");
        let _server = Server::start(port, &[]).await;
        broker.publish(&[event(3)]).await.unwrap();
        broker.probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_blocking_read_ends_with_its_server() {
        let server = Server::start(free_port(), &[]).await;
        let broker = build(json!({"url": server.url()})).await.unwrap();
        let waiting = broker.wait(Position::START, 1, Duration::from_hours(1));
        let killing = async {
            sleep(Duration::from_millis(50)).await;
            drop(server);
        };
        let (waited, ()) = tokio::join!(waiting, killing);
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::Disconnected);
        assert_eq!(broker.pool().unwrap().idle, 0);
    }

    #[tokio::test]
    async fn a_refusal_keeps_its_kind_in_batches_and_scripts() {
        let server = Server::start(free_port(), &[]).await;
        for wire in ["cloudevents", "agentarea"] {
            let broker = build(json!({"url": server.url(), "wire": wire})).await.unwrap();
            for (refuse, accept, kind) in [
                ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", ErrorKind::ReadOnly),
                ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", ErrorKind::Unavailable),
            ] {
                run(&server.url(), refuse).await;
                for batch in [vec![event(1)], vec![event(1), event(2)]] {
                    let error = broker.publish(&batch).await.unwrap_err();
                    assert_eq!(error.kind(), kind, "{wire}: {error}");
                    assert!(!error.outcome_unknown(), "{wire}: {error}");
                }
                assert_eq!(broker.probe().await.unwrap_err().kind(), kind);
                run(&server.url(), accept).await;
                broker.probe().await.unwrap();
            }
            assert!(broker.read(Position::START, 1).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn simultaneous_calls_share_one_connection() {
        let server = Server::start(free_port(), &[]).await;
        let broker = build(json!({"url": server.url()})).await.unwrap();
        run(&server.url(), "CLIENT KILL TYPE normal").await;
        let _broken = broker.publish(&[event(0)]).await;
        let made = async || match run(&server.url(), "INFO stats").await {
            redis::Value::BulkString(text) => String::from_utf8(text)
                .unwrap()
                .lines()
                .find_map(|line| line.strip_prefix("total_connections_received:")?.parse().ok())
                .unwrap_or(0),
            _ => 0,
        };
        let before: u32 = made().await;
        let events: Vec<Event> = (0..1000).map(event).collect();
        let calls = events.chunks(1).map(|event| broker.publish(event));
        let results = futures_util::future::join_all(calls).await;
        assert!(results.iter().all(Result::is_ok));
        assert!(made().await - before <= 2, "one of them is the asker's");
    }

    async fn read_nothing(broker: &dyn EventBroker, wait: Duration) {
        assert!(broker.wait(Position::START, 1, wait).await.unwrap().is_empty());
    }

    async fn no_connection_is_pooled(broker: &dyn EventBroker) {
        let begin = Instant::now();
        while broker.pool().unwrap().idle > 0 {
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", broker.pool());
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_connection_of_a_blocking_read_is_closed_when_idle() {
        let scratch = Scratch::new();
        let section = Section(json!({"url": scratch.url, "stream": scratch.stream}));
        let idle_timeout = Duration::from_millis(100);
        let limits = Limits { idle_timeout, keepalive: Duration::ZERO, ..Limits::default() };
        let context = context_with(limits, &Metrics::new("test", "test"));
        let broker = Factory.build(&section, &context).await.unwrap();
        for _ in 0..2 {
            read_nothing(&*broker, Duration::from_millis(10)).await;
            no_connection_is_pooled(&*broker).await;
        }
    }

    #[tokio::test]
    async fn an_idle_connection_that_died_silently_is_found_before_a_read_meets_it() {
        let server = Server::start(free_port(), &[]).await;
        let silent = CancellationToken::new();
        let address = relay(([127, 0, 0, 1], server.port).into(), silent.clone()).await;
        let limits = Limits {
            keepalive: Duration::from_millis(100),
            acquire_timeout: Duration::from_millis(500),
            ..Limits::default()
        };
        let context = context_with(limits, &Metrics::new("test", "test"));
        let section = Section(json!({"url": format!("redis://{address}")}));
        let broker = Factory.build(&section, &context).await.unwrap();
        read_nothing(&*broker, Duration::from_millis(10)).await;
        assert_eq!(broker.pool().unwrap().idle, 1);
        silent.cancel();
        no_connection_is_pooled(&*broker).await;
        let begin = Instant::now();
        read_nothing(&*broker, Duration::from_millis(10)).await;
        assert!(begin.elapsed() < Duration::from_millis(400), "no read waits for a dead one");
    }

    #[tokio::test]
    async fn a_long_blocking_read_is_no_leak() {
        let scratch = Scratch::new();
        let section = Section(json!({"url": scratch.url, "stream": scratch.stream}));
        let limits = Limits { leak_after: Duration::from_millis(100), ..Limits::default() };
        let metrics = Metrics::new("test", "test");
        let broker = Factory.build(&section, &context_with(limits, &metrics)).await.unwrap();
        read_nothing(&*broker, Duration::from_millis(500)).await;
        let none = r#"agentarea_connection_leaks_total{connection="event_broker"} 0"#;
        assert!(metrics.text().contains(none));
    }

    /// Publishes and reads until `stop`; gives the errors.
    async fn work_until(
        broker: &dyn EventBroker,
        done: &AtomicUsize,
        stop: &CancellationToken,
    ) -> Vec<Error> {
        let mut errors = Vec::new();
        while !stop.is_cancelled() {
            let published = broker.publish(&[event(1)]).await;
            let read = broker.wait(Position::START, 1, Duration::from_millis(2)).await;
            for result in [published, read.map(drop)] {
                match result {
                    Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => errors.push(error),
                }
            }
        }
        errors
    }

    #[tokio::test]
    async fn no_call_is_refused_when_a_password_rotates_and_connections_are_killed() {
        let server = Server::start(free_port(), &["--requirepass", "password-0"]).await;
        let file = SecretFile::new("password-0");
        let section = json!({"url": server.url(), "password": file.value()});
        let broker = build(section).await.unwrap();
        let admin = format!("redis://:password-0@127.0.0.1:{}", server.port);
        let admin = Client::open(admin).unwrap();
        // It stays logged in.
        let mut admin = admin.get_multiplexed_async_connection().await.unwrap();
        let (done, stop) = (AtomicUsize::new(0), CancellationToken::new());
        let rotation = async {
            for n in 1..=10 {
                file.write(&format!("password-{n}"));
                let mut set = redis::cmd("CONFIG");
                set.arg("SET").arg("requirepass").arg(format!("password-{n}"));
                set.exec_async(&mut admin).await.unwrap();
                let mut kill = redis::cmd("CLIENT");
                kill.arg("KILL").arg("TYPE").arg("normal");
                kill.exec_async(&mut admin).await.unwrap();
                let (before, begin) = (done.load(Ordering::Relaxed), Instant::now());
                while done.load(Ordering::Relaxed) < before + 50 {
                    assert!(begin.elapsed() < Duration::from_secs(30), "calls do not go on");
                    sleep(Duration::from_millis(1)).await;
                }
                // The probe's own connection was killed, too.
                if let Err(error) = broker.probe().await {
                    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
                    broker.probe().await.unwrap();
                }
            }
            stop.cancel();
        };
        let load = (0..8).map(|_| work_until(&*broker, &done, &stop));
        let (errors, ()) = tokio::join!(futures_util::future::join_all(load), rotation);
        let errors: Vec<_> = errors.into_iter().flatten().collect();
        let killed = |error: &Error| error.kind() == ErrorKind::Disconnected;
        assert!(errors.iter().all(killed), "{errors:?}");
    }

    #[tokio::test]
    async fn a_url_file_rotates_as_a_password_file_does() {
        let server = Server::start(free_port(), &["--requirepass", "first"]).await;
        let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port);
        let file = SecretFile::new(&url("first"));
        let broker = build(json!({"url": file.value()})).await.unwrap();
        broker.publish(&[event(1)]).await.unwrap();
        run(&url("first"), "CONFIG SET requirepass second").await;
        file.write(&url("second"));
        // The connection that stays logged in is used on; a new one needs the new password.
        broker.publish(&[event(2)]).await.unwrap();
        let read = broker.wait(Position::START, 9, Duration::from_secs(9)).await.unwrap();
        assert_eq!(read.len(), 2);
    }

    #[tokio::test]
    async fn a_link_that_died_silently_is_given_up() {
        let server = Server::start(free_port(), &[]).await;
        let silent = CancellationToken::new();
        let address = relay(([127, 0, 0, 1], server.port).into(), silent.clone()).await;
        let broker = build(json!({"url": format!("redis://{address}")})).await.unwrap();
        silent.cancel();
        let moment = Duration::from_millis(50);
        for _ in 0..PATIENCE {
            assert!(timeout(moment, broker.publish(&[event(1)])).await.is_err());
        }
        broker.publish(&[event(1)]).await.unwrap();
        assert!(timeout(moment, broker.probe()).await.is_err());
        broker.probe().await.unwrap();
    }

    #[test]
    fn a_section_that_cannot_work_is_refused_without_its_secrets() {
        let problems = |section: Value| serde_json::from_value::<Config>(section).unwrap().check();
        assert!(problems(json!({})).is_empty());
        assert!(problems(json!({"url": "rediss://u:p@host:1/2", "ca_file": "/ca.pem"})).is_empty());
        for (section, key) in [
            (json!({"url": "http://u:hunter2@host"}), "url"),
            (json!({"url": "redis://u:hunter2@host/x"}), "url"),
            (json!({"url": "rediss://u:hunter2@host#insecure"}), "url"),
            (json!({"url": "redis://u:hunter2@host", "ca_file": "/ca.pem"}), "ca_file"),
            (json!({"stream": ""}), "stream"),
        ] {
            let found = problems(section.clone());
            assert_eq!(found.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key], "{section}");
            assert!(!found[0].1.contains("hunter2"));
        }
    }
}
