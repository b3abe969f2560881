//! The maintenance that a pooled connection needs, and its time. Pure: time is passed in.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use crate::config;

/// Bounds of the time between two rounds of maintenance. A round over idle connections costs
/// microseconds, and nothing that it maintains justifies a shorter interval.
const PACE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// The time limits of a pool; an unset limit does not apply.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    max_lifetime: Option<Duration>,
    idle_timeout: Option<Duration>,
    keepalive: Option<Duration>,
    leak_after: Option<Duration>,
}

/// The history of a pooled connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    opened: Instant,
    /// The age at which it is replaced.
    max_age: Option<Duration>,
    /// The time at which it was last returned.
    idle_since: Instant,
    /// The time at which it last answered, or was in use.
    last_seen: Instant,
}

/// The action that an idle connection needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It needs none.
    Nothing,
    /// It must prove that it still works.
    Check,
    /// It must be closed, for this reason.
    Close(&'static str),
}

impl Policy {
    pub(super) fn new(config: &config::Pool) -> Self {
        let unless_off = |time: Duration| (!time.is_zero()).then_some(time);
        Self {
            max_lifetime: unless_off(config.max_lifetime),
            idle_timeout: unless_off(config.idle_timeout),
            keepalive: unless_off(config.keepalive),
            leak_after: unless_off(config.leak_after),
        }
    }

    /// Returns the life of a connection that was opened now. The lifetime is shortened by up to a
    /// tenth at random, so that not all connections are replaced at once.
    pub(super) fn begin(&self, now: Instant) -> Life {
        let jitter = rand::rng().random_range(0.9..=1.0);
        let max_age = self.max_lifetime.map(|longest| longest.mul_f64(jitter));
        Life { opened: now, max_age, idle_since: now, last_seen: now }
    }

    pub(super) fn due(&self, life: &Life, now: Instant) -> Due {
        let reached = |limit: Option<Duration>, since: Instant| {
            limit.is_some_and(|limit| now.saturating_duration_since(since) >= limit)
        };
        if reached(life.max_age, life.opened) {
            Due::Close("it reached its maximum lifetime")
        } else if reached(self.idle_timeout, life.idle_since) {
            Due::Close("it was idle for too long")
        } else if reached(self.keepalive, life.last_seen) {
            Due::Check
        } else {
            Due::Nothing
        }
    }

    /// The time at which a checkout that begins now, and is expected to last `expected`, counts as
    /// leaked.
    pub(super) fn leaks_at(&self, now: Instant, expected: Duration) -> Option<Instant> {
        now.checked_add(self.leak_after?.saturating_add(expected))
    }

    /// The time between two rounds, so that nothing is late by more than a quarter of its limit;
    /// `None` if there is nothing to do.
    pub(super) fn pace(&self) -> Option<Duration> {
        let times = [self.max_lifetime, self.idle_timeout, self.keepalive, self.leak_after];
        let shortest = times.into_iter().flatten().min()?;
        Some((shortest / 4).clamp(PACE.0, PACE.1))
    }
}

impl Life {
    /// Records its return by a caller.
    pub(super) fn given_back(&mut self, now: Instant) {
        self.idle_since = now;
        self.last_seen = now;
    }

    /// Records an answer to a check, which does not count as use.
    pub(super) fn answered(&mut self, now: Instant) {
        self.last_seen = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn policy() -> Policy {
        Policy::new(&config::Pool {
            max_lifetime: seconds(1000),
            idle_timeout: seconds(100),
            keepalive: seconds(10),
            leak_after: seconds(5),
            ..config::Pool::default()
        })
    }

    #[test]
    fn an_idle_connection_is_checked_again_and_again_and_closed_at_last() {
        let (policy, begin) = (policy(), Instant::now());
        let mut life = policy.begin(begin);
        assert_eq!(policy.due(&life, begin + seconds(9)), Due::Nothing);
        for at in (10..100).step_by(10) {
            assert_eq!(policy.due(&life, begin + seconds(at)), Due::Check, "at {at}");
            life.answered(begin + seconds(at));
            assert_eq!(policy.due(&life, begin + seconds(at + 9)), Due::Nothing, "at {at}");
        }
        let closed = Due::Close("it was idle for too long");
        assert_eq!(policy.due(&life, begin + seconds(100)), closed);
    }

    #[test]
    fn use_delays_checks_and_idleness_but_not_the_end_of_life() {
        let (policy, begin) = (policy(), Instant::now());
        let mut life = policy.begin(begin);
        for at in (9..900).step_by(9) {
            assert_eq!(policy.due(&life, begin + seconds(at)), Due::Nothing, "at {at}");
            life.given_back(begin + seconds(at));
        }
        life.given_back(begin + seconds(999));
        let closed = Due::Close("it reached its maximum lifetime");
        assert_eq!(policy.due(&life, begin + seconds(1000)), closed);
    }

    #[test]
    fn lives_differ_by_up_to_a_tenth() {
        let (policy, now) = (policy(), Instant::now());
        let ages: Vec<_> = (0..100).filter_map(|_| policy.begin(now).max_age).collect();
        assert!(ages.iter().all(|age| (seconds(900)..=seconds(1000)).contains(age)), "{ages:?}");
        assert!(ages.iter().any(|age| *age != ages[0]));
    }

    #[test]
    fn zero_switches_each_off() {
        let off = Policy::new(&config::Pool {
            max_lifetime: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            keepalive: Duration::ZERO,
            leak_after: Duration::ZERO,
            ..config::Pool::default()
        });
        let begin = Instant::now();
        assert_eq!(off.due(&off.begin(begin), begin + seconds(1_000_000)), Due::Nothing);
        assert_eq!((off.leaks_at(begin, Duration::ZERO), off.pace()), (None, None));
    }

    #[test]
    fn a_leak_is_later_where_a_long_hold_is_expected() {
        let (policy, now) = (policy(), Instant::now());
        assert_eq!(policy.leaks_at(now, Duration::ZERO), Some(now + seconds(5)));
        assert_eq!(policy.leaks_at(now, seconds(60)), Some(now + seconds(65)));
        assert_eq!(policy.leaks_at(now, Duration::MAX), None);
    }

    #[test]
    fn rounds_are_as_frequent_as_the_shortest_time_needs() {
        assert_eq!(policy().pace(), Some(Duration::from_millis(1250)));
        assert_eq!(Policy::new(&config::Pool::default()).pace(), Some(seconds(5)));
    }

    proptest! {
        #[test]
        fn nothing_outlives_its_times_and_nothing_ends_before_them(
            (lifetime, idle, keepalive) in (0_u64..500, 0_u64..100, 0_u64..50),
            steps in prop::collection::vec((1_u64..60, any::<bool>()), 1..100),
        ) {
            let policy = Policy::new(&config::Pool {
                max_lifetime: seconds(lifetime),
                idle_timeout: seconds(idle),
                keepalive: seconds(keepalive),
                ..config::Pool::default()
            });
            let begin = Instant::now();
            let mut life = policy.begin(begin);
            let (mut now, mut used, mut seen) = (begin, begin, begin);
            for (pause, use_it) in steps {
                now += seconds(pause);
                let over = |limit: u64, since: Instant, share: f64| {
                    limit > 0 && now - since >= seconds(limit).mul_f64(share)
                };
                let due = policy.due(&life, now);
                let must_end = over(lifetime, begin, 1.0) || over(idle, used, 1.0);
                let may_end = over(lifetime, begin, 0.9) || over(idle, used, 1.0);
                let ends = matches!(due, Due::Close(_));
                prop_assert!(ends || !must_end, "{due:?} although its time is over");
                prop_assert!(may_end || !ends, "{due:?} before its time");
                if ends {
                    break;
                }
                prop_assert_eq!(due == Due::Check, over(keepalive, seen, 1.0));
                if use_it {
                    life.given_back(now);
                    (used, seen) = (now, now);
                } else if due == Due::Check {
                    life.answered(now);
                    seen = now;
                }
            }
        }
    }
}
