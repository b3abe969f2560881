//! The rate at which the backend's lists are requested.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::{
    error::{Error, ErrorKind},
    model::backoff::Backoff,
};

/// Pauses after the backend asked for fewer calls.
const THROTTLED: Backoff = Backoff::doubling(Duration::from_millis(500), Duration::from_secs(10));

/// Spaces lists evenly, and further apart while the backend asks for fewer calls.
#[derive(Debug)]
pub(super) struct ListPace {
    interval: Duration,
    next: Instant,
    throttles: u32,
}

impl ListPace {
    pub(super) fn new(lists_per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / lists_per_second.max(1);
        Self { interval, next: Instant::now(), throttles: 0 }
    }

    /// Requests a list when it is due.
    pub(super) async fn request<T>(
        &mut self,
        list: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        sleep_until(self.next).await;
        let begun = Instant::now();
        let listed = list.await;
        let throttled = listed.as_ref().is_err_and(|error| error.kind() == ErrorKind::Throttled);
        self.throttles = if throttled { self.throttles + 1 } else { 0 };
        self.next = begun + self.interval.max(THROTTLED.pause_after(self.throttles));
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lists_keep_their_rate_and_give_way_when_the_backend_asks_for_it() {
        let mut pace = ListPace::new(5);
        let begin = Instant::now();
        let mut list = async |listed: Result<(), Error>| {
            let _listed = pace.request(async { listed }).await;
            begin.elapsed().as_millis()
        };
        let fewer = || Err(Error::new(ErrorKind::Throttled, "fewer calls"));
        assert_eq!(list(Ok(())).await, 0);
        assert_eq!(list(Ok(())).await, 200);
        assert_eq!(list(fewer()).await, 400);
        assert_eq!(list(fewer()).await, 900);
        assert_eq!(list(Ok(())).await, 1900);
        assert_eq!(list(Ok(())).await, 2100);
    }
}
