//! How many starts run side by side.

use std::time::Duration;

use tokio::time::Instant;

/// The starts with which a process begins.
const FIRST: f64 = 16.0;
/// A start that takes this many times as long as usual shows that the service is busy.
const TOLERANCE: f64 = 1.5;
/// The share of the recent start in the usual duration.
const USUAL: f64 = 1.0 / 256.0;
/// The share of the new limit in the limit.
const SMOOTHING: f64 = 0.2;
/// Starts that may wait at the service, so that it never waits for us.
const WAITING: f64 = 4.0;

/// A limit that follows the latency of starts, after the gradient algorithm of Netflix's
/// `concurrency-limits`: it grows while starts take as long as usual, shrinks while they take longer,
/// and is halved when the service asks for fewer calls.
#[derive(Debug)]
pub(super) struct Pace {
    most: f64,
    limit: f64,
    /// The usual duration of a start, in seconds.
    usual: Option<f64>,
    /// When the service last asked for fewer calls.
    halved: Option<Instant>,
}

impl Pace {
    /// A limit that never exceeds `most`.
    pub(super) fn new(most: usize) -> Self {
        let most = f64::from(u32::try_from(most.max(1)).unwrap_or(u32::MAX));
        Self { most, limit: FIRST.min(most), usual: None, halved: None }
    }

    /// The starts that may run side by side.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the limit is between 1 and a number of starts"
    )]
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Records a start that took `took` while `beside` others ran.
    pub(super) fn started(&mut self, took: Duration, beside: usize) {
        let took = took.as_secs_f64().max(1e-6);
        let usual = self.usual.unwrap_or(took);
        let usual = usual + (took - usual) * USUAL;
        // After a busy time, the usual duration must not excuse the next one.
        self.usual = Some(if usual > took * 2.0 { usual * 0.95 } else { usual });
        // A limit that was not used says nothing about what the service takes.
        if beside * 2 < self.limit() {
            return;
        }
        let gradient = (TOLERANCE * usual / took).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + WAITING;
        self.set(self.limit + (wanted - self.limit) * SMOOTHING);
    }

    /// Records that the service asked for fewer calls in answer to a start begun at `begun`. Starts
    /// that were under way when the limit was halved do not halve it again.
    pub(super) fn throttled(&mut self, begun: Instant) {
        if self.halved.is_none_or(|halved| begun > halved) {
            self.halved = Some(Instant::now());
            self.set(self.limit / 2.0);
        }
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(1.0, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts on a service that works on `parallel` starts at a time, each for `work`, with as many
    /// side by side as the pace allows.
    fn run(pace: &mut Pace, starts: usize, parallel: u32, work: Duration) {
        for _ in 0..starts {
            let beside = u32::try_from(pace.limit()).unwrap();
            pace.started(work * beside.div_ceil(parallel), pace.limit());
        }
    }

    #[test]
    fn the_limit_grows_to_what_is_allowed_while_the_service_is_quick() {
        let mut pace = Pace::new(64);
        run(&mut pace, 200, 64, Duration::from_millis(2));
        assert_eq!(pace.limit(), 64);
        assert_eq!(Pace::new(4).limit(), 4);
    }

    #[test]
    fn the_limit_shrinks_when_starts_take_longer_than_usual_and_recovers() {
        let mut pace = Pace::new(64);
        run(&mut pace, 500, 64, Duration::from_millis(2));
        run(&mut pace, 20, 64, Duration::from_millis(40));
        assert!(pace.limit() < 20, "{}", pace.limit());
        assert!(pace.limit() >= 1);
        run(&mut pace, 200, 64, Duration::from_millis(2));
        assert_eq!(pace.limit(), 64);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        let mut pace = Pace::new(64);
        for _ in 0..200 {
            pace.started(Duration::from_millis(2), 3);
        }
        assert_eq!(pace.limit(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_asks_for_fewer_calls_halves_the_limit_once_for_all_under_way() {
        let mut pace = Pace::new(64);
        let begun = Instant::now();
        tokio::time::advance(Duration::from_millis(5)).await;
        for _ in 0..16 {
            pace.throttled(begun);
        }
        assert_eq!(pace.limit(), 8);
        tokio::time::advance(Duration::from_millis(5)).await;
        pace.throttled(Instant::now());
        assert_eq!(pace.limit(), 4);
        for _ in 0..16 {
            tokio::time::advance(Duration::from_millis(5)).await;
            pace.throttled(Instant::now());
        }
        assert_eq!(pace.limit(), 1);
    }
}
