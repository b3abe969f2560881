//! Uses the managed connection in another program:
//! `cargo run --example embedded -- 127.0.0.1:6379`.
//!
//! Asks that Redis server for a PONG ten times a second, and prints each change: stop the server
//! and start it again. Ctrl-C closes the connection.

use std::{env, error::Error as StdError, io, sync::Arc, time::Duration};

use agentarea_api::{
    config::{
        BackendConfig, BackendDescriptor, CircuitBreaker, Pool, Probe, Retry, Section, Startup,
        Table, Timeout,
    },
    connection::{
        Backend, BuildContext, Factory, Family, Managed, Operation, Policies, Registry, Settings,
    },
    error::{Error, ErrorKind},
    tasks::Tasks,
    telemetry::metrics::Metrics,
};
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    sync::Mutex,
};

/// Idempotent, because asking twice changes nothing.
const ASK: Operation = Operation::idempotent("ask");

/// The family: the operations that the connection offers to the program, whatever the backend.
#[async_trait]
trait Oracle: Backend {
    async fn ask(&self) -> Result<String, Error>;
}

impl Family for dyn Oracle {
    const OPERATIONS: &'static [Operation] = &[ASK];
}

/// The one backend of the family.
#[derive(Debug)]
struct RedisOracle(Mutex<Option<BufStream<TcpStream>>>);

/// Its table of the configuration, which this program does not read from files.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct NoTable {}

impl BackendConfig for NoTable {
    fn address(&self) -> String {
        String::new()
    }
}

/// Classifies an error for the guard and the report.
fn classify(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => ErrorKind::Refused,
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Disconnected,
    };
    Error::new(kind, "the oracle does not speak").with_source(error)
}

#[async_trait]
impl Oracle for RedisOracle {
    async fn ask(&self) -> Result<String, Error> {
        let mut place = self.0.lock().await;
        // The stream leaves its place while an answer is pending, and a caller that is dropped
        // takes it along, so that the next one does not read an answer to another question.
        let stream = place.take();
        let mut stream = stream.ok_or_else(|| classify(io::ErrorKind::NotConnected.into()))?;
        stream.write_all(b"PING\r\n").await.map_err(classify)?;
        stream.flush().await.map_err(classify)?;
        let mut line = String::new();
        if stream.read_line(&mut line).await.map_err(classify)? == 0 {
            return Err(classify(io::ErrorKind::UnexpectedEof.into()));
        }
        *place = Some(stream);
        Ok(line.trim().to_owned())
    }
}

#[async_trait]
impl Backend for RedisOracle {
    async fn probe(&self) -> Result<(), Error> {
        self.ask().await.map(|_| ())
    }

    async fn close(&self) {
        self.0.lock().await.take();
    }
}

struct RedisFactory {
    address: String,
}

#[async_trait]
impl Factory<dyn Oracle> for RedisFactory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: "oracle",
            name: "redis",
            variables: &[],
            shared: true,
            example: "",
            table: Table::of::<NoTable>(),
        }
    }

    async fn build(&self, _: &Section, _: &BuildContext) -> Result<Arc<dyn Oracle>, Error> {
        let stream = TcpStream::connect(&self.address).await.map_err(classify)?;
        Ok(Arc::new(RedisOracle(Mutex::new(Some(BufStream::new(stream))))))
    }
}

fn settings() -> Settings {
    let policies = Policies {
        timeout: Timeout { attempt: Duration::from_millis(500), total: Duration::from_secs(1) },
        retry: Retry { max_attempts: 2, ..Retry::default() },
        circuit_breaker: CircuitBreaker { minimum_calls: 5, ..CircuitBreaker::default() },
        ..Policies::default()
    };
    let probe = Probe {
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(200),
        ..Probe::default()
    };
    Settings {
        backend: "redis".to_owned(),
        section: Section::default(),
        startup: Startup::Background,
        startup_timeout: Duration::from_secs(10),
        required: true,
        pool: Pool::default(),
        policies,
        probe,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let address = env::args().nth(1).ok_or("usage: embedded HOST:PORT")?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), "example");
    let tasks = Tasks::default();
    let registry: Registry<dyn Oracle> = Registry::new("oracle").register(RedisFactory { address });
    let connection =
        Managed::new(registry, "example".into(), metrics.connection("oracle"), tasks.clone());
    connection.start(settings());

    let mut pace = tokio::time::interval(Duration::from_millis(100));
    let mut last = String::new();
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        let answer =
            connection.client().call(ASK, |oracle| async move { oracle.ask().await }).await;
        let answer = answer.unwrap_or_else(|error| error.kind().as_str().to_owned());
        let report = connection.report();
        let line = format!("{answer}: {}, {}", report.service.as_str(), report.circuit.as_str());
        if line != last {
            println!("{line}, built {} times", report.builds);
            last = line;
        }
    }

    connection.close().await;
    tasks.close();
    tasks.wait().await;
    println!("closed: {} calls", connection.report().uses);
    Ok(())
}
