//! Clients that each send one request after another.
//!
//! They share one thread, and use hyper's connections as they are: every instruction here takes
//! time from what is measured.

use std::{
    cell::Cell,
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime, sync::oneshot, time::sleep};

use crate::figures::{ACCEPTED, FAILED, Figures, P50, P99, REFUSED, number, quantile};

/// The pause of a client that was refused.
const PAUSE: Duration = Duration::from_millis(50);

/// When the clients end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Elapsed(Duration),
    /// So many requests have succeeded.
    Succeeded(usize),
}

/// The result of a client's job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Success,
    /// The service has too much to do: 503.
    Refused,
    Failure,
}

impl Answer {
    pub(crate) fn of(status: u16, success: u16) -> Self {
        match status {
            _ if status == success => Self::Success,
            503 => Self::Refused,
            _ => Self::Failure,
        }
    }
}

/// The requests of all clients.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) succeeded: usize,
    refused: usize,
    failed: usize,
    pub(crate) seconds: f64,
    /// Of those that succeeded, sorted.
    took_ms: Vec<f64>,
}

impl Sent {
    pub(crate) fn per_second(&self) -> f64 {
        number(self.succeeded) / self.seconds
    }

    pub(crate) fn figures(&self) -> Figures {
        Figures::default().with(ACCEPTED, self.per_second()).with_latency(self)
    }
}

impl Figures {
    pub(crate) fn with_failures(self, sent: &Sent) -> Self {
        self.with(REFUSED, number(sent.refused)).with(FAILED, number(sent.failed))
    }

    pub(crate) fn with_latency(self, sent: &Sent) -> Self {
        self.with(P50, quantile(&sent.took_ms, 0.5))
            .with(P99, quantile(&sent.took_ms, 0.99))
            .with_failures(sent)
    }
}

/// A kept-alive connection of one client.
pub(crate) struct Connection {
    requests: SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    /// Sends a request; returns the status and the body.
    pub(crate) async fn send(&mut self, method: Method, path: &str, body: Bytes) -> (u16, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("a valid request");
        let answer = self.requests.send_request(request).await.expect("an answer");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.expect("a body");
        (status, body.to_bytes())
    }
}

/// Runs `job` on the connection of every client, again and again. A client that does not
/// succeed pauses.
pub(crate) async fn run<J>(host: &str, clients: usize, until: Until, job: J) -> Sent
where
    J: AsyncFn(&mut Connection, usize) -> Answer + Send + 'static,
{
    let (host, (done, sent)) = (host.to_owned(), oneshot::channel());
    thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let sent = runtime.expect("a runtime").block_on(all(&host, clients, until, &job));
        done.send(sent).expect("the benchmark waits for it");
    });
    sent.await.expect("no client gives up")
}

async fn all<J>(host: &str, clients: usize, until: Until, job: &J) -> Sent
where
    J: AsyncFn(&mut Connection, usize) -> Answer,
{
    let begin = Instant::now();
    let (claimed, refused, failed) = (&Cell::new(0), &Cell::new(0), &Cell::new(0));
    let may_continue = &|| match until {
        Until::Elapsed(lasts) => begin.elapsed() < lasts,
        Until::Succeeded(count) => claimed.replace(claimed.get() + 1) < count,
    };
    let one = |client: usize| async move {
        let (mut connection, drive) = connect(host).await;
        let requests = async {
            let mut took_ms = Vec::new();
            while may_continue() {
                let sent = Instant::now();
                let failures = match job(&mut connection, client).await {
                    Answer::Success => {
                        took_ms.push(sent.elapsed().as_secs_f64() * 1e3);
                        continue;
                    }
                    Answer::Refused => refused,
                    Answer::Failure => failed,
                };
                failures.set(failures.get() + 1);
                claimed.set(claimed.get().saturating_sub(1));
                sleep(PAUSE).await;
            }
            took_ms
        };
        tokio::select! {
            took_ms = requests => took_ms,
            () = drive => panic!("{host} closed a connection"),
        }
    };
    let mut took_ms = join_all((0..clients).map(one)).await.concat();
    took_ms.sort_by(f64::total_cmp);
    let (succeeded, seconds) = (took_ms.len(), begin.elapsed().as_secs_f64());
    Sent { succeeded, refused: refused.get(), failed: failed.get(), seconds, took_ms }
}

async fn connect(host: &str) -> (Connection, impl Future<Output = ()>) {
    let stream = TcpStream::connect(host).await.expect("the server listens");
    stream.set_nodelay(true).expect("it is a TCP connection");
    let (requests, connection) = handshake(TokioIo::new(stream)).await.expect("it speaks HTTP");
    let drive = async {
        let _ended = connection.await.is_ok();
    };
    (Connection { requests, host: host.to_owned() }, drive)
}
