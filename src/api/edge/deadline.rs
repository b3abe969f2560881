//! The time limit of a request.

use std::time::Duration;

use poem::{Request, Response};
use tokio::time::{Instant, timeout};

use super::problems::Refusal;
use crate::{
    config::{Config, values::duration},
    connection,
};

/// Calls to a backend fail at the deadline with an error of their own. Work that passes no guard is
/// cut off this much later.
const GRACE: Duration = Duration::from_millis(100);

/// The time limit of a request.
pub(super) fn of(request: &Request, config: &Config) -> Duration {
    config.server.request_timeout + granted_wait(request, config)
}

/// Serves a request within its time limit.
pub(super) async fn within(
    limit: Duration,
    served: impl Future<Output = poem::Result<Response>>,
) -> poem::Result<Response> {
    let served = connection::within(Instant::now() + limit, served);
    timeout(limit + GRACE, served).await.unwrap_or_else(|_| Err(Refusal::Late.into()))
}

/// A wait that the client asks for is added to the request's own limit.
fn granted_wait(request: &Request, config: &Config) -> Duration {
    let query = request.uri().query().unwrap_or_default();
    let wait = query.split('&').find_map(|pair| pair.strip_prefix("wait="));
    wait.and_then(|text| duration::parse(text).ok())
        .map_or(Duration::ZERO, |wait| wait.min(config.executions.max_wait))
}
