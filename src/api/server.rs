//! The accept loop, which serves the endpoint.
//!
//! The framework's own loop neither cuts off a request head that never ends nor always finishes
//! draining. A client connection is bounded in three ways: a first request within `header_timeout`
//! (which also catches a silent peer and a stalled TLS handshake), each further head within
//! `header_timeout`, and the drain.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use poem::{
    Addr, Endpoint, Response,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    tls::{self, TlsFileError},
    unread,
};
use crate::config::Server;

type HyperBody = http_body_util::combinators::BoxBody<bytes::Bytes, io::Error>;

/// The number of clients that the system queues for the accept loop.
const BACKLOG: i32 = 1024;
/// Pause after a failed accept, as when the process runs out of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// The largest request head.
const MAX_HEAD: usize = 64 << 10;
/// The multiple of `max_body` up to which a refused body is still read. With the defaults this
/// equals the limit of nginx in `deploy/nginx`, so that each refusal arrives through it.
const UNREAD: u64 = 8;

/// An error that keeps the server from starting.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The files of `[server.tls]` cannot be used.
    #[error(transparent)]
    TlsFile(#[from] TlsFileError),
    /// The port is taken or not allowed.
    #[error("cannot listen on {wanted}: {error}{}", remedy(.error))]
    Address {
        /// The configured address.
        wanted: SocketAddr,
        /// The error of the system.
        error: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what uses it, or choose another with PORT",
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 with PORT",
        _ => "",
    }
}

/// A bound port, before anything is served on it.
pub struct Bound {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    /// The bound address, with the port that the system chose.
    pub address: SocketAddr,
    max_connections: usize,
    header_timeout: Duration,
    max_unread: u64,
}

impl Bound {
    /// Binds the configured address.
    ///
    /// # Errors
    /// When the port is taken or not allowed, or the TLS files cannot be used.
    pub fn new(config: &Server) -> Result<Self, BindError> {
        let tls = tls::acceptor(&config.tls)?;
        let wanted = SocketAddr::new(config.host, config.port);
        let bind = || {
            let listener = listen(wanted)?;
            listener.local_addr().map(|address| (listener, address))
        };
        let (listener, address) = bind().map_err(|error| BindError::Address { wanted, error })?;
        let Server { max_connections, header_timeout, .. } = *config;
        let max_unread = UNREAD * config.max_body.0 as u64;
        Ok(Self { listener, tls, address, max_connections, header_timeout, max_unread })
    }

    /// The URL for clients, such as `http://127.0.0.1:8000`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit it on Linux.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `endpoint` until `stop`, then lets running requests finish for up to `drain`. Returns
/// false when some had to be cut off.
pub async fn serve<E>(bound: Bound, endpoint: E, stop: CancellationToken, drain: Duration) -> bool
where
    E: Endpoint<Output = Response> + 'static,
{
    let Bound { listener, tls, header_timeout, max_connections, max_unread, .. } = bound;
    let connections = TaskTracker::new();
    let carrier = Arc::new(Carrier {
        endpoint,
        tls,
        builder: builder(header_timeout),
        header_timeout,
        max_unread,
        tasks: connections.clone(),
        stop: stop.clone(),
        cut: CancellationToken::new(),
    });
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(max_connections));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((permit, peer)) => {
                let (carrier, watcher) = (Arc::clone(&carrier), graceful.watcher());
                connections.spawn(async move {
                    carrier.carry(peer, watcher).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a client connection cannot be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
        }
    }
    // From here on, new clients are refused instead of waiting in the backlog.
    drop(listener);
    let in_time = timeout(drain, graceful.shutdown()).await.is_ok();
    carrier.cut.cancel();
    connections.close();
    connections.wait().await;
    in_time
}

type Peer = (TcpStream, SocketAddr);

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, Peer)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let peer = listener.accept().await?;
    Ok((permit, peer))
}

fn builder(header_timeout: Duration) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(200)
        .max_header_list_size(16 << 10);
    builder
}

/// The state that all client connections share.
struct Carrier<E> {
    endpoint: E,
    tls: Option<TlsAcceptor>,
    builder: Builder<TokioExecutor>,
    header_timeout: Duration,
    max_unread: u64,
    tasks: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl<E: Endpoint<Output = Response> + 'static> Carrier<E> {
    /// Serves one client connection to its end.
    async fn carry(self: Arc<Self>, (stream, remote): Peer, watcher: Watcher) {
        let first = Arc::new(First::default());
        let serving = async {
            let local = stream.local_addr().map_or_else(|_| LocalAddr::default(), local_addr);
            let remote = RemoteAddr(Addr::SocketAddr(remote));
            let seen = Arc::clone(&first);
            match &self.tls {
                None => self.talk(stream, (local, remote, Scheme::HTTP), seen, watcher).await,
                Some(tls) => {
                    // A handshake that is unfinished at `stop` is too late.
                    let shaken = self.stop.run_until_cancelled(tls.accept(stream)).await;
                    let Some(stream) = shaken.transpose()? else { return Ok(()) };
                    self.talk(stream, (local, remote, Scheme::HTTPS), seen, watcher).await
                }
            }
        };
        tokio::select! {
            ended = serving => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a client connection ended early");
                }
            }
            // The head's own timeout starts only once the protocol is known.
            () = first.missing_after(self.header_timeout) => {}
            () = self.cut.cancelled() => {}
        }
    }

    /// Serves HTTP on a stream.
    async fn talk(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        (local, remote, scheme): (LocalAddr, RemoteAddr, Scheme),
        first: Arc<First>,
        watcher: Watcher,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let carrier = Arc::clone(self);
        let service = hyper::service::service_fn(move |request| {
            first.mark();
            let carrier = Arc::clone(&carrier);
            let parts = (request, local.clone(), remote.clone(), scheme.clone());
            async move {
                let mut request = poem::Request::from(parts);
                unread::drop_rest(&mut request, carrier.max_unread, &carrier.tasks);
                let response = carrier.endpoint.get_response(request).await;
                Ok::<hyper::Response<HyperBody>, Infallible>(response.into())
            }
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        watcher.watch(connection.into_owned()).await
    }
}

fn local_addr(address: SocketAddr) -> LocalAddr {
    LocalAddr(Addr::SocketAddr(address))
}

/// Records whether a client connection has sent its first request.
#[derive(Default)]
struct First {
    seen: AtomicBool,
    told: Notify,
}

impl First {
    fn mark(&self) {
        if !self.seen.swap(true, Ordering::Relaxed) {
            self.told.notify_one();
        }
    }

    /// Completes only if no request arrives within `limit`.
    async fn missing_after(&self, limit: Duration) {
        if timeout(limit, self.told.notified()).await.is_ok() {
            future::pending::<()>().await;
        }
    }
}
