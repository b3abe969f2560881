//! The twelve scenes: the programs they start, and the faults.

use std::time::Instant;

use agentarea_api::error::ErrorKind::{
    self, Missing, ReadOnly, Refused, Timeout, Tls, Unauthenticated,
};
use futures_util::{
    future::{FutureExt, LocalBoxFuture},
    stream::{self, StreamExt},
};
use serde_json::json;

use crate::support::{
    DEADLINE, Database, Redis, Service, Setup, certificate, cloud_event, eventually,
    prometheus::target,
    send_cloud_event, signal,
    toxiproxy::{Fault, Toxiproxy},
    variable,
};

const DOWN: &str = "AgentAreaConnectionDown";
const UNREACHABLE: &str = "AgentAreaInstanceUnreachable";
const BROKER: &str = "event_broker";
const EXECUTIONS: &str = "execution_service";
const DATABASE: &str = "database";

/// The part that the outage hits, and that the page shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Watched {
    /// A connection, which fails with errors of this class.
    Connection(&'static str, ErrorKind),
    /// Work for a destination.
    Destination(&'static str),
    /// The whole process.
    Instance,
}

/// The fault, with the server that it hits.
enum Cause {
    /// The fault exists from the start.
    Configured,
    KillRedis(Redis),
    FreezeRedis(Redis),
    ChangePassword(Redis),
    Link(Toxiproxy, Fault),
    MakeReadOnly,
    PublishTooLarge {
        #[expect(dead_code, reason = "it lives as long as the scene")]
        at: Redis,
    },
    Signal(&'static str),
}

/// One outage.
pub(super) struct Scene {
    pub(super) title: &'static str,
    /// The fault, in the words of the page.
    pub(super) done: &'static str,
    pub(super) alert: &'static str,
    pub(super) watched: Watched,
    pub(super) service: Service,
    /// The time of the fault; `None` before it.
    pub(super) begun: Option<Instant>,
    /// The length of the log before the fault.
    pub(super) logged: usize,
    cause: Cause,
    database: Option<Database>,
}

impl Scene {
    /// The labels that identify its alert.
    pub(super) fn labels(&self) -> Vec<(&'static str, String)> {
        let instance = ("instance", target(&self.service).to_owned());
        match self.watched {
            Watched::Connection(name, _) => vec![instance, ("connection", name.to_owned())],
            Watched::Destination(name) => vec![("destination", name.to_owned())],
            Watched::Instance => vec![instance],
        }
    }

    pub(super) async fn begin(&mut self) {
        if self.begun.is_none() {
            self.begun = Some(Instant::now());
            self.logged = self.service.log().len();
        }
        match &mut self.cause {
            Cause::Configured => {}
            Cause::KillRedis(redis) => redis.down(),
            Cause::FreezeRedis(redis) => redis.freeze(true),
            Cause::ChangePassword(redis) => change_password(redis).await,
            Cause::Link(proxy, fault) => proxy.begin(*fault).await,
            Cause::MakeReadOnly => {
                make_read_only(self.database.as_ref().expect("it has a database")).await;
            }
            Cause::PublishTooLarge { .. } => publish_too_large(&self.service).await,
            Cause::Signal(name) => signal(&self.service.child, name),
        }
    }

    pub(super) async fn end(self) {
        drop(self.service);
        if let Some(database) = self.database {
            database.drop().await;
        }
    }
}

async fn change_password(redis: &Redis) {
    let client = redis::Client::open(redis.url()).unwrap();
    // Its own limits are short where twelve programs have just started.
    let patient = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(DEADLINE))
        .set_response_timeout(Some(DEADLINE));
    let mut connection =
        client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
    let mut commands = redis::pipe();
    commands.cmd("CONFIG").arg(&["SET", "requirepass", "another"]);
    commands.cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]);
    let _done: (String, i64) = commands.query_async(&mut connection).await.unwrap();
}

/// As after a failover, when the address leads to the replica.
async fn make_read_only(database: &Database) {
    let name = database.name();
    let read_only = format!("ALTER DATABASE {name} SET default_transaction_read_only = on");
    database.execute(&read_only).await;
    let end =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    database.execute(&end).await;
}

async fn publish_too_large(service: &Service) {
    let mut event = cloud_event("task-1", 0);
    event["data"] = json!("x".repeat(2 << 20));
    assert_eq!(send_cloud_event(service, &event).await.0, 202);
}

/// The shipped configuration.
fn setup() -> Setup {
    Setup::new().with_default_probes()
}

async fn healthy(setup: Setup) -> Service {
    let service = setup.start().await;
    service.healthy().await;
    service
}

fn scene(
    title: &'static str,
    done: &'static str,
    (alert, watched): (&'static str, Watched),
    service: Service,
    cause: Cause,
) -> Scene {
    Scene { title, done, alert, watched, service, begun: None, logged: 0, cause, database: None }
}

/// An outage that exists from the start. On a busy machine another connection can fail first, which
/// is a different outage; then the scene is restarted.
async fn misconfigured(
    [title, done]: [&'static str; 2],
    (connection, class): (&'static str, ErrorKind),
    setup: impl Fn() -> Setup,
) -> Scene {
    let complaint = format!("{connection} is unavailable ");
    let expected = format!("error.class=\"{class}\"");
    let (begun, service) = eventually("it fails as it should", async || {
        let begun = Instant::now();
        let service = setup().start().await;
        let line = eventually("it complains", async || {
            let log = service.log();
            log.lines().find(|line| line.contains(&complaint)).map(str::to_owned)
        })
        .await;
        line.contains(&expected).then_some((begun, service))
    })
    .await;
    let scene = scene(title, done, down(connection, class), service, Cause::Configured);
    Scene { begun: Some(begun), ..scene }
}

const fn down(connection: &'static str, class: ErrorKind) -> (&'static str, Watched) {
    (DOWN, Watched::Connection(connection, class))
}

async fn redis(class: ErrorKind, texts: [&'static str; 2], cause: fn(Redis) -> Cause) -> Scene {
    let redis = Redis::start().await;
    let service = healthy(setup().variable("REDIS_URL", &redis.url())).await;
    scene(texts[0], texts[1], down(BROKER, class), service, cause(redis))
}

async fn redis_of_unknown_authority() -> Scene {
    let texts = [
        "The certificate of Redis comes from an unknown authority",
        "`event_broker.redis.ca_file` names another authority than the one that signed it.",
    ];
    let stranger = certificate("stranger.pem");
    misconfigured(texts, (BROKER, Tls), || {
        setup()
            .variable("REDIS_URL", &variable("TEST_REDIS_TLS_URL"))
            .set("event_broker.redis.ca_file", &stranger.to_string_lossy())
    })
    .await
}

async fn broker_that_refuses() -> Scene {
    let redis = Redis::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let setup = setup().variable("REDIS_URL", &redis.url()).set("server.max_body", "4MiB");
    scene(
        "The broker refuses an event",
        "Redis takes values of 1 MiB (`proto-max-bulk-len`), `server.max_body` is 4 MiB, and a client \
         published an event of 2 MiB.",
        ("AgentAreaDeadLetters", Watched::Destination(BROKER)),
        healthy(setup).await,
        Cause::PublishTooLarge { at: redis },
    )
}

async fn postgres_behind_a_link(class: ErrorKind, texts: [&'static str; 2], fault: Fault) -> Scene {
    let database = Database::create().await;
    let proxy = Toxiproxy::before(database.address()).await;
    let url = database.url_at(&proxy.address);
    let service = healthy(setup().variable("DATABASE_URL", &url)).await;
    let cause = Cause::Link(proxy, fault);
    let scene = scene(texts[0], texts[1], down(DATABASE, class), service, cause);
    Scene { database: Some(database), ..scene }
}

async fn postgres_read_only() -> Scene {
    let database = Database::create().await;
    let service = healthy(setup().variable("DATABASE_URL", &database.url)).await;
    let scene = scene(
        "PostgreSQL is read-only",
        "Its sessions ended and new ones accept no writes, as after a failover that left the address \
         with the replica.",
        down(DATABASE, ReadOnly),
        service,
        Cause::MakeReadOnly,
    );
    Scene { database: Some(database), ..scene }
}

async fn temporal_down() -> Scene {
    let proxy = Toxiproxy::before(&variable("TEST_TEMPORAL_ADDRESS")).await;
    let setup = setup().variable("TEMPORAL_ADDRESS", &proxy.address);
    let service = healthy(setup).await;
    scene(
        "Temporal is down",
        "Nothing listens at its address any more.",
        down(EXECUTIONS, Refused),
        service,
        Cause::Link(proxy, Fault::Cut),
    )
}

async fn temporal_without_namespace() -> Scene {
    let texts =
        ["Temporal has no such namespace", "`TEMPORAL_NAMESPACE` names one that was never made."];
    misconfigured(texts, (EXECUTIONS, Missing), || {
        setup()
            .variable("TEMPORAL_ADDRESS", &variable("TEST_TEMPORAL_ADDRESS"))
            .variable("TEMPORAL_NAMESPACE", "absent")
    })
    .await
}

async fn replica(title: &'static str, done: &'static str, name: &'static str) -> Scene {
    let service = healthy(setup()).await;
    scene(title, done, (UNREACHABLE, Watched::Instance), service, Cause::Signal(name))
}

/// Starts a few at a time, because twelve programs that start together would slow each other down.
const AT_ONCE: usize = 3;

/// Misconfigured ones come last, because their outage begins at their start.
pub(super) async fn all() -> Vec<Scene> {
    let scenes: [LocalBoxFuture<'_, Scene>; 12] = [
        redis(
            Refused,
            ["Redis is down", "Its process was killed; nothing listens at its address."],
            Cause::KillRedis,
        )
        .boxed_local(),
        redis(
            Timeout,
            ["Redis is frozen", "Its process was stopped: connections stay, answers do not come."],
            Cause::FreezeRedis,
        )
        .boxed_local(),
        redis(
            Unauthenticated,
            ["Redis refuses the password", "It has another one, and its connections were ended."],
            Cause::ChangePassword,
        )
        .boxed_local(),
        broker_that_refuses().boxed_local(),
        postgres_behind_a_link(
            Refused,
            ["PostgreSQL is down", "Nothing listens at its address any more."],
            Fault::Cut,
        )
        .boxed_local(),
        postgres_behind_a_link(
            Timeout,
            [
                "The link to PostgreSQL stalls",
                "Connections stay and carry nothing, as behind a firewall that drops packets.",
            ],
            Fault::Stall,
        )
        .boxed_local(),
        postgres_read_only().boxed_local(),
        temporal_down().boxed_local(),
        replica("A replica is killed", "`kill -9`.", "-KILL").boxed_local(),
        replica(
            "A replica is frozen",
            "`kill -STOP`: a host that is suspended, or a process that gets no CPU.",
            "-STOP",
        )
        .boxed_local(),
        redis_of_unknown_authority().boxed_local(),
        temporal_without_namespace().boxed_local(),
    ];
    stream::iter(scenes).buffered(AT_ONCE).collect().await
}
