//! The real servers that tests talk to; `scripts/servers` starts them.

#[cfg(any(feature = "postgres", feature = "redis"))]
use std::net::SocketAddr;

#[cfg(any(feature = "postgres", feature = "redis"))]
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
#[cfg(any(feature = "postgres", feature = "redis"))]
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The value of a variable that `scripts/servers` sets.
///
/// # Panics
/// When it is missing: a test never passes because its server is not there.
#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are")]
pub(crate) fn variable(name: &str, package: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `scripts/servers start DIR` and `source DIR/env`, or \
             `scripts/test`, which does both; the server comes with `{package}`"
        )
    })
}

/// A database of its own for one test.
#[cfg(feature = "postgres")]
pub(crate) struct PostgresDatabase {
    pub(crate) url: String,
    server: String,
    name: String,
}

#[cfg(feature = "postgres")]
impl PostgresDatabase {
    pub(crate) async fn create() -> Self {
        let server = variable("TEST_DATABASE_URL", "apt-get install -y postgresql");
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        execute(&server, &format!("CREATE DATABASE {name}")).await;
        let (base, _database) = server.rsplit_once('/').expect("the URL names a database");
        Self { url: format!("{base}/{name}"), server: server.clone(), name }
    }

    pub(crate) async fn drop(self) {
        execute(&self.server, &format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

#[cfg(feature = "postgres")]
async fn execute(url: &str, statement: &str) {
    let (client, connection) =
        tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("PostgreSQL answers");
    let drive = async {
        let _ended = connection.await.is_ok();
    };
    let run = async {
        client.batch_execute(statement).await.expect("the statement works");
        drop(client);
    };
    tokio::join!(drive, run);
}

/// Forwards to `to`; a link that was open when it went silent stays silent for ever.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) async fn relay(to: SocketAddr, silent: CancellationToken) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskTracker::new().spawn(async move {
        let tasks = TaskTracker::new();
        while let Ok((mut from, _)) = listener.accept().await {
            let until =
                if silent.is_cancelled() { CancellationToken::new() } else { silent.clone() };
            tasks.spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let forward = copy_bidirectional(&mut from, &mut to);
                let _stopped = until.run_until_cancelled(forward).await;
                until.is_cancelled().then(|| std::mem::forget((from, to)));
            });
        }
    });
    address
}
