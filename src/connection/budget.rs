//! The retry budget limits retries to a share of the calls, so that they do not amplify an outage.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::RetryBudget as Policy;

/// A retry costs a thousand of these, so that a call can bring a fraction of one.
const RETRY: u64 = 1000;
/// Credit is kept for so many seconds of the floor and so many calls, no more: what was saved in
/// quiet hours must not become a storm.
const KEPT_SECONDS: f64 = 10.0;
const KEPT_CALLS: f64 = 100.0;

/// Calls bring credit, time brings the floor, retries spend both.
#[derive(Debug)]
pub(super) struct Budget {
    credit: AtomicU64,
    capacity: u64,
    per_call: u64,
    per_second: f64,
    /// Up to when the floor has been paid in.
    paid: Mutex<Instant>,
}

impl Budget {
    pub(super) fn new(policy: &Policy, now: Instant) -> Self {
        let floor = f64::from(policy.min_per_second);
        let capacity = thousandths(policy.ratio * KEPT_CALLS + floor * KEPT_SECONDS);
        Self {
            // One second of the floor, so that the first failure can be repeated.
            credit: AtomicU64::new(capacity.min(thousandths(floor))),
            capacity,
            per_call: thousandths(policy.ratio),
            per_second: floor,
            paid: Mutex::new(now),
        }
    }

    /// Records a call.
    pub(super) fn deposit(&self) {
        // When the budget is full, which is usual, this is one load.
        if self.per_call > 0 && self.credit.load(Ordering::Relaxed) < self.capacity {
            self.add(self.per_call);
        }
    }

    /// Spends one retry, if the budget allows it.
    pub(super) fn withdraw(&self, now: Instant) -> bool {
        self.pay_floor(now);
        let spend = |credit: u64| credit.checked_sub(RETRY);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }

    /// 0 to 1: how full it is.
    pub(super) fn available(&self, now: Instant) -> f64 {
        self.pay_floor(now);
        if self.capacity == 0 {
            return 0.0;
        }
        ratio(self.credit.load(Ordering::Relaxed), self.capacity)
    }

    fn pay_floor(&self, now: Instant) {
        let mut paid = self.paid.lock();
        let due = thousandths(now.saturating_duration_since(*paid).as_secs_f64() * self.per_second);
        if due > 0 {
            *paid = now;
            drop(paid);
            self.add(due);
        }
    }

    fn add(&self, amount: u64) {
        let grown = |credit: u64| Some(credit.saturating_add(amount).min(self.capacity));
        let _previous = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "policies are bounded and not negative, and the cast saturates"
)]
fn thousandths(retries: f64) -> u64 {
    (retries * 1000.0) as u64
}

#[expect(clippy::cast_precision_loss, reason = "a gauge needs no more digits")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn policy(ratio: f64, min_per_second: u32) -> Policy {
        Policy { ratio, min_per_second }
    }

    proptest! {
        #[test]
        fn retries_never_exceed_share_floor_and_what_is_kept(
            ratio in 0.0_f64..1.0, floor in 0_u32..20,
            steps in prop::collection::vec((0_u64..500, 0_u32..20, 0_u32..50), 1..60),
        ) {
            let begin = Instant::now();
            let budget = Budget::new(&policy(ratio, floor), begin);
            let (mut now, mut calls, mut retries) = (begin, 0_u32, 0_u32);
            for (millis, new_calls, wanted) in steps {
                now += Duration::from_millis(millis);
                calls += new_calls;
                (0..new_calls).for_each(|_| budget.deposit());
                retries += (0..wanted).map(|_| u32::from(budget.withdraw(now))).sum::<u32>();
                let seconds = (now - begin).as_secs_f64();
                let allowed = f64::from(calls) * ratio + (seconds + 1.0) * f64::from(floor);
                prop_assert!(f64::from(retries) <= allowed + 1e-6, "{retries} > {allowed}");
                let available = budget.available(now);
                prop_assert!((0.0..=1.0).contains(&available));
            }
        }
    }

    #[test]
    fn without_traffic_the_floor_allows_its_rate() {
        let begin = Instant::now();
        let budget = Budget::new(&policy(0.2, 2), begin);
        while budget.withdraw(begin) {}
        assert!(!budget.withdraw(begin + Duration::from_millis(400)));
        assert!(budget.withdraw(begin + Duration::from_millis(600)));
    }

    #[test]
    fn a_quiet_hour_does_not_save_up_a_storm() {
        let begin = Instant::now();
        let budget = Budget::new(&policy(0.1, 1), begin);
        let later = begin + Duration::from_hours(1);
        let retries = (0..1000).filter(|_| budget.withdraw(later)).count();
        assert_eq!(retries, 20);
    }
}
