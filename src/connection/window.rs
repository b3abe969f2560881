//! The most recent results, in a ring of short spans. Pure: time is passed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::CircuitBreaker as Policy;

/// Spans of a window: the oldest tenth is forgotten at once.
const SPANS: usize = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    calls: u32,
    failed: u32,
    slow: u32,
}

/// Counts results over a span of time.
#[derive(Debug)]
pub(super) struct Window {
    spans: [Counts; SPANS],
    total: Counts,
    current: usize,
    /// When the current span began.
    began: Instant,
    width: Duration,
}

impl Window {
    pub(super) fn new(length: Duration, now: Instant) -> Self {
        let width = (length / 10).max(Duration::from_millis(1));
        let nothing = Counts::default();
        Self { spans: [nothing; SPANS], total: nothing, current: 0, began: now, width }
    }

    pub(super) fn clear(&mut self, now: Instant) {
        self.spans = [Counts::default(); SPANS];
        self.total = Counts::default();
        self.began = now;
    }

    pub(super) fn add(&mut self, now: Instant, failed: bool, slow: bool) {
        self.advance(now);
        for counts in [&mut self.spans[self.current], &mut self.total] {
            counts.calls = counts.calls.saturating_add(1);
            counts.failed = counts.failed.saturating_add(u32::from(failed));
            counts.slow = counts.slow.saturating_add(u32::from(slow));
        }
    }

    /// Adds good results of the current span.
    pub(super) fn add_good(&mut self, calls: u32) {
        for counts in [&mut self.spans[self.current], &mut self.total] {
            counts.calls = counts.calls.saturating_add(calls);
        }
    }

    /// The end of the current span.
    pub(super) fn span_ends(&self) -> Instant {
        self.began + self.width
    }

    fn advance(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.began);
        if age < self.width {
            return;
        }
        let steps = age.as_nanos() / self.width.as_nanos();
        if steps >= SPANS as u128 {
            self.clear(now);
            return;
        }
        for _ in 0..steps {
            self.current = (self.current + 1) % SPANS;
            let gone = std::mem::take(&mut self.spans[self.current]);
            self.total.calls = self.total.calls.saturating_sub(gone.calls);
            self.total.failed = self.total.failed.saturating_sub(gone.failed);
            self.total.slow = self.total.slow.saturating_sub(gone.slow);
            self.began += self.width;
        }
    }

    /// The reason to stop calls, if there is one.
    pub(super) fn verdict(&self, policy: &Policy) -> Option<String> {
        let Counts { calls, failed, slow } = self.total;
        // Most often nothing is wrong, and then nothing is to be calculated: rates are above zero.
        if (failed == 0 && slow == 0) || calls < policy.minimum_calls {
            return None;
        }
        let reached = |count: u32, rate: f64| f64::from(count) >= rate * f64::from(calls);
        if reached(failed, policy.failure_rate) {
            return Some(format!("{failed} of {calls} calls failed"));
        }
        if reached(slow, policy.slow_call_rate) {
            return Some(format!("{slow} of {calls} calls were slow"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A result with the time since the one before.
    type Result = (u64, bool, bool);

    fn results() -> impl Strategy<Value = Vec<Result>> {
        prop::collection::vec((0_u64..3000, any::<bool>(), any::<bool>()), 1..200)
    }

    proptest! {
        #[test]
        fn it_counts_what_lies_within_its_length_give_or_take_a_tenth(results in results()) {
            let (length, begin) = (Duration::from_secs(10), Instant::now());
            let mut window = Window::new(length, begin);
            let (mut now, mut all) = (begin, Vec::new());
            for (millis, failed, slow) in results {
                now += Duration::from_millis(millis);
                window.add(now, failed, slow);
                all.push((now, failed, slow));
                let within = |age: Duration| {
                    let young = all.iter().filter(|(at, ..)| now - *at < age);
                    young.fold((0, 0, 0), |(calls, bad, late), (_, failed, slow)| {
                        (calls + 1, bad + u32::from(*failed), late + u32::from(*slow))
                    })
                };
                let (least, most) = (within(length.mul_f64(0.9)), within(length));
                let Counts { calls, failed, slow } = window.total;
                prop_assert!((least.0..=most.0).contains(&calls), "{calls}: {least:?} {most:?}");
                prop_assert!((least.1..=most.1).contains(&failed), "{failed}: {least:?} {most:?}");
                prop_assert!((least.2..=most.2).contains(&slow), "{slow}: {least:?} {most:?}");
                let sum = window.spans.iter().map(|span| span.calls).sum::<u32>();
                prop_assert_eq!(sum, calls, "the total is the sum of the spans");
            }
        }
    }
}
