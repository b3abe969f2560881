//! A gateway to Temporal that can refuse starts, as a server does that has enough to do.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use hyper::{body::Incoming, header::CONTENT_TYPE, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    transport::{Channel, Endpoint},
};

/// Passes all calls on; ends when dropped.
pub(crate) struct Gateway {
    /// `host:port` to connect to.
    pub(crate) address: String,
    refuses: Arc<AtomicBool>,
    _serving: JoinSet<()>,
}

impl Gateway {
    /// To the server at `host:port`.
    pub(crate) async fn before(server: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{server}")).expect("an address");
        let channel = endpoint.connect_lazy();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let refuses = Arc::<AtomicBool>::default();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, channel, Arc::clone(&refuses)));
        Self { address, refuses, _serving: serving }
    }

    /// From now on, starts are answered with `RESOURCE_EXHAUSTED`, or no more.
    pub(crate) fn refuse_starts(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, channel: Channel, refuses: Arc<AtomicBool>) {
    let service = service_fn(move |request| pass(request, channel.clone(), Arc::clone(&refuses)));
    let mut guests = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let guest = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service.clone());
        guests.spawn(async move { guest.await.is_ok() });
    }
}

async fn pass(
    request: hyper::Request<Incoming>,
    mut channel: Channel,
    refuses: Arc<AtomicBool>,
) -> Result<hyper::Response<Body>, tonic::transport::Error> {
    let is_start = request.uri().path().ends_with("/StartWorkflowExecution");
    if is_start && refuses.load(Ordering::Relaxed) {
        let status = Status::new(Code::ResourceExhausted, "namespace rate limit exceeded");
        let mut response = status.into_http::<Body>();
        response.headers_mut().insert(CONTENT_TYPE, "application/grpc".parse().expect("a value"));
        return Ok(response);
    }
    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
    channel.call(request.map(Body::new)).await
}
