//! Reads the rest of a request body that was answered before it was read.
//!
//! Closing a connection on which the client still writes resets it, and a reset can destroy the
//! answer before the client, or the proxy in front, has read it. Therefore the rest is read and
//! dropped for a while, in parallel with the answer, which is not delayed.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::body::{Body, Frame, SizeHint};
use poem::{Request, http::header};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// The time for which the rest is read.
const PATIENCE: Duration = Duration::from_secs(5);

type Inner = BoxBody<Bytes, io::Error>;

/// Makes one of `tasks` read up to `most` bytes of the rest once the handler drops the request's
/// body.
pub(super) fn drop_rest(request: &mut Request, most: u64, tasks: &TaskTracker) {
    let inner = Inner::from(request.take_body());
    if inner.is_end_stream() {
        return request.set_body(inner);
    }
    // Such a client sends its body only when it is asked to.
    let withheld = request.headers().contains_key(header::EXPECT);
    let body = Sent { inner, withheld, most, tasks: tasks.clone() };
    request.set_body(Inner::new(body));
}

/// A body that the client is still sending.
struct Sent {
    inner: Inner,
    withheld: bool,
    most: u64,
    tasks: TaskTracker,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.withheld = false;
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.inner = nothing();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.withheld && !self.inner.is_end_stream() {
            let rest = std::mem::replace(&mut self.inner, nothing());
            self.tasks.spawn(timeout(PATIENCE, read(rest, self.most)));
        }
    }
}

fn nothing() -> Inner {
    Empty::new().map_err(|never| match never {}).boxed()
}

async fn read(mut body: Inner, most: u64) {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, |data| data.len() as u64);
        if length > most {
            break;
        }
    }
}
