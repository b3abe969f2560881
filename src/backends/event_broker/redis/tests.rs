mod blocking_reads;
mod cluster;
mod over_tls;
mod rotation;
mod sentinel;

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::StreamExt;
use redis::{Client, aio::MultiplexedConnection};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use crate::{
    backends::{
        event_broker::contract,
        test_server::{Link, Redis as Server, SecretFile, far, free_port, variable},
    },
    config::Pool as Limits,
    error::RetryClass,
    model::ids,
    telemetry::metrics::Metrics,
};

fn server() -> String {
    variable("TEST_REDIS_URL")
}

const MOMENT: Duration = Duration::from_millis(50);

/// A stream of this test only, deleted at its end.
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
        let mut section = json!({"url": far(&self.url), "stream": self.stream});
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
    let begin = Instant::now();
    loop {
        match try_to_run(url, command).await {
            Ok(answer) => return answer,
            // A failover closes the connections of all clients.
            Err(error) if error.is_io_error() && begin.elapsed() < Duration::from_secs(10) => {}
            Err(error) => panic!("{command}: {error}"),
        }
    }
}

async fn try_to_run(url: &str, command: &str) -> redis::RedisResult<redis::Value> {
    let client = Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut words = command.split_whitespace();
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query_async(&mut connection).await
}

/// Joins all words of an answer.
fn text(answer: &redis::Value) -> String {
    match answer {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::SimpleString(text) => text.clone(),
        redis::Value::Int(number) => number.to_string(),
        redis::Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join(" "),
        _ => String::new(),
    }
}

async fn ask(server: &Server, command: &str) -> String {
    text(&run(&server.url(), command).await)
}

/// Returns the number of entries that a server has in the default stream.
async fn entries(server: &Server) -> usize {
    ask(server, "XLEN agentarea:events").await.parse().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !holds().await {
        assert!(begin.elapsed() < Duration::from_mins(1), "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Publishes until it works again; every error on the way must allow a retry.
async fn published_again(broker: &dyn EventBroker) {
    let moment = Duration::from_secs(3);
    until("events are published again", async || {
        match timeout(moment, broker.publish(&[&event(9)])).await {
            Ok(Err(error)) => {
                assert_ne!(error.retry(), RetryClass::Never, "{error}");
                false
            }
            answered => answered.is_ok(),
        }
    })
    .await;
}

/// Probes once more if the probe's own connection led to the previous server.
async fn probed_again(broker: &dyn EventBroker) {
    if let Err(error) = broker.probe().await {
        assert_ne!(error.retry(), RetryClass::Never, "{error}");
        broker.probe().await.unwrap();
    }
}

/// Checks that everything works again after a failover, and on that server.
async fn goes_on_at(server: &Server, broker: &dyn EventBroker, written: Position) {
    published_again(broker).await;
    probed_again(broker).await;
    let read = broker.wait(written, 1, Duration::from_secs(9)).await.unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(entries(server).await, broker.read(Position::START, 99).await.unwrap().len());
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
        tasks: crate::tasks::Tasks::default(),
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
    Event::new("test.event", Some("subject".to_owned()), Some(&json!({"n": n}).into()))
}

/// The result of the work.
#[derive(Default)]
struct Worked {
    published: usize,
    errors: Vec<Error>,
}

/// Publishes and reads until `stop`.
async fn work_until(
    broker: &dyn EventBroker,
    done: &AtomicUsize,
    stop: &CancellationToken,
) -> Worked {
    let Worked { mut published, mut errors } = Worked::default();
    while !stop.is_cancelled() {
        let publish = broker.publish(&[&event(1)]).await;
        published += usize::from(publish.is_ok());
        let read = broker.wait(Position::START, 1, Duration::from_millis(2)).await;
        for result in [publish.map(drop), read.map(drop)] {
            match result {
                Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                Err(error) => errors.push(error),
            }
        }
    }
    Worked { published, errors }
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
    contract::suite(scratch.broker(json!({"url": far(&url)})).await).await;
}

#[tokio::test]
async fn agentarea_s_subscribers_hear_of_each_event_of_a_batch() {
    let scratch = Scratch::new();
    let broker = scratch.broker(json!({"wire": "agentarea"})).await;
    let client = Client::open(scratch.url.as_str()).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    let kind = format!("test.{}", scratch.stream);
    subscriber.subscribe(&kind).await.unwrap();
    let batch: Vec<Event> = (0..3).map(|_| Event::new(kind.clone(), None, None)).collect();
    broker.publish(&batch.iter().collect::<Vec<_>>()).await.unwrap();
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
    let server = Server::start().await;
    run(&server.url(), "ACL SETUSER app on >secret ~* +@all resetchannels").await;
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port);
    let broker = build(json!({"url": url, "wire": "agentarea"})).await.unwrap();
    broker.publish(&[&event(1), &event(2)]).await.unwrap();
    assert_eq!(broker.read(Position::START, 9).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_with_a_password_wants_it() {
    let server = Server::start_with(&["--requirepass", "s3cret"]).await;
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

/// Starts a listener that speaks another protocol.
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
    let replica = Server::start_with(&["--replicaof", "127.0.0.1 1"]).await;
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

    let many: Vec<Event> = (0..350).map(event).collect();
    broker.publish(&many.iter().collect::<Vec<_>>()).await.unwrap();
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
    broker.publish(&[&event(1)]).await.unwrap();
    let refilled = broker.range().await.unwrap();
    assert!(!refilled.can_resume_after(missing.newest));
    assert!(refilled.complete_after >= range.newest);
}

#[tokio::test]
async fn a_stream_that_was_never_trimmed_is_whole_from_its_start() {
    let scratch = Scratch::new();
    let broker = scratch.broker(json!({})).await;
    let begin = broker.range().await.unwrap().newest;
    broker.publish(&[&event(1), &event(2)]).await.unwrap();
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
    broker.publish(&[&event(1)]).await.unwrap();
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
            let error = broker.publish(&batch.iter().collect::<Vec<_>>()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        }
        assert_eq!(broker.range().await.unwrap_err().kind(), ErrorKind::Incompatible);
    }
}

#[tokio::test]
async fn a_server_that_returns_is_used_by_the_very_next_call() {
    let port = free_port();
    let server = Server::start_on(port, &[]).await;
    let broker = build(json!({"url": server.url()})).await.unwrap();
    broker.publish(&[&event(1)]).await.unwrap();
    drop(server);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(broker.publish(&[&event(2)]).await.unwrap_err().kind());
        assert!(broker.probe().await.is_err());
    }
    assert_eq!(kinds[1..], [ErrorKind::Refused; 2], "{kinds:?}");
    let _server = Server::start_on(port, &[]).await;
    broker.publish(&[&event(3)]).await.unwrap();
    broker.probe().await.unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_its_kind_in_batches_and_scripts() {
    let server = Server::start().await;
    for wire in ["cloudevents", "agentarea"] {
        let broker = build(json!({"url": server.url(), "wire": wire})).await.unwrap();
        for (refuse, accept, kind) in [
            ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", ErrorKind::ReadOnly),
            ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", ErrorKind::Unavailable),
        ] {
            run(&server.url(), refuse).await;
            for batch in [vec![event(1)], vec![event(1), event(2)]] {
                let error = broker.publish(&batch.iter().collect::<Vec<_>>()).await.unwrap_err();
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
    let server = Server::start().await;
    let broker = build(json!({"url": server.url()})).await.unwrap();
    run(&server.url(), "CLIENT KILL TYPE normal").await;
    let _broken = broker.publish(&[&event(0)]).await;
    let made = async || {
        let stats = ask(&server, "INFO stats").await;
        let mut lines = stats.lines();
        lines.find_map(|line| line.strip_prefix("total_connections_received:")?.parse().ok())
    };
    let before: u32 = made().await.unwrap();
    let events: Vec<Event> = (0..1000).map(event).collect();
    let calls = events.iter().map(|event| async { broker.publish(&[event]).await });
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().all(Result::is_ok));
    assert!(made().await.unwrap() - before <= 2, "one of them is the asker's");
}

#[tokio::test]
async fn a_link_that_died_silently_is_given_up() {
    let (_server, link, broker) = behind_a_link().await;
    link.forget_connections();
    for _ in 0..PATIENCE {
        assert!(timeout(MOMENT, broker.publish(&[&event(1)])).await.is_err());
    }
    broker.publish(&[&event(1)]).await.unwrap();
    assert!(timeout(MOMENT, broker.probe()).await.is_err());
    broker.probe().await.unwrap();
}

#[tokio::test]
async fn no_call_meets_what_died_in_an_outage_that_probes_have_seen() {
    let (_server, link, broker) = behind_a_link().await;
    link.forget_connections();
    assert!(timeout(MOMENT, broker.probe()).await.is_err());
    broker.probe().await.unwrap();
    let published = timeout(Duration::from_secs(10), broker.publish(&[&event(1)])).await;
    published.expect("it is on a new connection").unwrap();
}

/// Returns a broker whose first connections die silently when the link forgets them.
async fn behind_a_link() -> (Server, Link, Arc<dyn EventBroker>) {
    let server = Server::start().await;
    let link = Link::to(&server.address()).await;
    let broker = build(json!({"url": format!("redis://{}", link.address)})).await.unwrap();
    (server, link, broker)
}
