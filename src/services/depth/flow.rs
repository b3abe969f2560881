//! How fast accepted work comes and goes, and whether it leaves in time.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    model::{
        backlog::Backlog,
        time::{self, Timestamp},
    },
    telemetry::metrics::{Destination, Metrics},
};

/// Rates are means over this time.
const SPAN: Duration = Duration::from_mins(1);
/// The interval between two log lines on work that goes on being late.
const REMIND_EVERY: Duration = Duration::from_mins(10);

/// What comes for one destination, and goes to it, through this process.
#[derive(Debug)]
pub(super) struct Flow {
    destination: Destination,
    degraded_after: Duration,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    accepted: Rate,
    delivered: Rate,
    late: Option<Late>,
}

/// A time during which work was late. It ends when nothing has waited for half as long, so that
/// work that leaves just in time is not told again and again.
#[derive(Clone, Copy, Debug)]
struct Late {
    since: Timestamp,
    begin: Instant,
    told: Instant,
}

impl Flow {
    pub(super) fn new(
        destination: Destination,
        degraded_after: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let state = State { accepted: Rate::new(), delivered: Rate::new(), late: None };
        Self { destination, degraded_after, metrics, state: Mutex::new(state) }
    }

    pub(super) fn accepted(&self, rows: usize) {
        self.state.lock().accepted.add(rows);
        self.metrics.outbox_accepted(self.destination, rows);
    }

    pub(super) fn delivered(&self, rows: usize) {
        self.state.lock().delivered.add(rows);
        self.metrics.outbox_delivered(self.destination, rows);
    }

    /// Work that was accepted and that was delivered, a second.
    pub(super) fn per_second(&self) -> (f64, f64) {
        let state = self.state.lock();
        (state.accepted.per_second(), state.delivered.per_second())
    }

    /// The time since which work is late, if some is.
    pub(super) fn late_since(&self, backlog: &Backlog) -> Option<Timestamp> {
        let late = || self.state.lock().late.map_or_else(time::now, |late| late.since);
        self.is_late(backlog).then(late)
    }

    fn is_late(&self, backlog: &Backlog) -> bool {
        backlog.oldest.is_some_and(|oldest| oldest > self.degraded_after)
    }

    /// Sets the metrics to the present.
    pub(super) fn show(&self, backlog: &Backlog) {
        let late = self.state.lock().late.filter(|_| self.is_late(backlog));
        let late_for = late.map(|late| late.begin.elapsed()).unwrap_or_default();
        self.metrics.show_outbox(self.destination, backlog, late_for);
    }

    /// Takes note of a new count, and logs when work begins to be late, is still late, or is not
    /// late any more.
    pub(super) fn watch(&self, backlog: &Backlog) {
        let mut state = self.state.lock();
        state.accepted.mark();
        state.delivered.mark();
        let now = Instant::now();
        match state.late {
            None if self.is_late(backlog) => {
                let late = Late { since: time::now(), begin: now, told: now };
                state.late = Some(late);
                drop(state);
                self.tell(backlog, late);
            }
            Some(late) if backlog.oldest.is_none_or(|oldest| oldest <= self.degraded_after / 2) => {
                state.late = None;
                drop(state);
                let (destination, late_seconds) = (self.destination.as_str(), late.begin.elapsed());
                tracing::info!(
                    destination,
                    late_seconds = late_seconds.as_secs_f64(),
                    "accepted work leaves for the {} in time again",
                    self.destination.as_words()
                );
            }
            Some(late) if late.told + REMIND_EVERY <= now && self.is_late(backlog) => {
                state.late = Some(Late { told: now, ..late });
                drop(state);
                self.tell(backlog, late);
            }
            _ => {}
        }
    }

    fn tell(&self, backlog: &Backlog, late: Late) {
        let (accepted_per_second, delivered_per_second) = self.per_second();
        tracing::warn!(
            destination = self.destination.as_str(),
            rows = backlog.rows,
            oldest_seconds = backlog.oldest.unwrap_or_default().as_secs_f64(),
            accepted_per_second,
            delivered_per_second,
            late_since = %late.since,
            "accepted work waits for the {} for longer than outbox.degraded_after",
            self.destination.as_words()
        );
    }
}

/// How often something happens.
#[derive(Debug)]
struct Rate {
    total: u64,
    /// Totals at some times of the last minute, and the one before it.
    marks: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn new() -> Self {
        Self { total: 0, marks: VecDeque::from([(Instant::now(), 0)]) }
    }

    fn add(&mut self, rows: usize) {
        self.total += rows as u64;
    }

    /// Remembers the total.
    fn mark(&mut self) {
        let now = Instant::now();
        self.marks.push_back((now, self.total));
        while self.marks.get(1).is_some_and(|(at, _)| now - *at >= SPAN) {
            self.marks.pop_front();
        }
    }

    fn per_second(&self) -> f64 {
        let (at, total) = self.marks[0];
        let seconds = at.elapsed().max(Duration::from_secs(1)).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate is shown, not counted")]
        let rows = (self.total - total) as f64;
        rows / seconds
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_that_of_the_last_minute() {
        let mut rate = Rate::new();
        rate.add(10);
        assert!((rate.per_second() - 10.0).abs() < 1e-9, "the first second is not divided");
        for second in 0..300 {
            advance(Duration::from_secs(1)).await;
            rate.add(if second < 200 { 5 } else { 20 });
            rate.mark();
            assert!(rate.marks.len() <= 62);
        }
        assert!((rate.per_second() - 20.0).abs() < 1e-9, "{}", rate.per_second());
    }

    #[tokio::test(start_paused = true)]
    async fn lateness_has_one_beginning_and_ends_with_room() {
        let seconds = Duration::from_secs;
        let metrics = Metrics::new("0", "0");
        let flow = Flow::new(Destination::EventBroker, seconds(60), metrics);
        let late_since = |oldest| {
            let backlog = Backlog { rows: 1, oldest: Some(seconds(oldest)), dead: 0 };
            flow.watch(&backlog);
            flow.late_since(&backlog)
        };
        assert_eq!(late_since(60), None);
        let begin = late_since(61).expect("it is late");
        assert_eq!(late_since(40), None, "nothing is late now");
        assert_eq!(late_since(70), Some(begin), "but it was not over");
        assert_eq!(late_since(30), None);
        assert!(flow.state.lock().late.is_none());
        assert!(late_since(70) > Some(begin), "it is late anew");
    }
}
