//! How long to pause before an attempt is repeated. Pure: chance is passed in.

use std::time::Duration;

use crate::config::{Jitter, Retry as Policy};

/// The pause before the retry number `retry`, from one. `chance` lies in 0..1.
///
/// Full jitter takes any time up to the exponential one, so that callers that failed together do
/// not come back together.
pub(super) fn pause(policy: &Policy, retry: u32, chance: f64) -> Duration {
    let exponent = i32::try_from(retry.saturating_sub(1)).unwrap_or(i32::MAX);
    let factor = policy.multiplier.powi(exponent);
    let seconds = policy.initial_backoff.as_secs_f64() * factor;
    let longest = policy.max_backoff.as_secs_f64();
    let bounded = if seconds.is_finite() { seconds.min(longest) } else { longest };
    let share = match policy.jitter {
        Jitter::Full => chance,
        Jitter::None => 1.0,
    };
    Duration::from_secs_f64(bounded * share)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_its_bound(
            initial in 1_u64..10_000, max in 1_u64..100_000, multiplier in 1.0_f64..10.0,
            retry in 1_u32..1_000, chance in 0.0_f64..1.0,
        ) {
            let policy = Policy {
                initial_backoff: Duration::from_millis(initial),
                max_backoff: Duration::from_millis(max),
                multiplier,
                ..Policy::default()
            };
            prop_assert!(pause(&policy, retry, chance) <= policy.max_backoff);
            let without_jitter = Policy { jitter: Jitter::None, ..policy.clone() };
            let longest = pause(&without_jitter, retry, chance);
            prop_assert!(pause(&policy, retry, chance) <= longest);
            prop_assert!(longest <= pause(&without_jitter, retry + 1, chance));
        }
    }

    #[test]
    fn without_jitter_it_grows_to_its_bound() {
        let policy = Policy {
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(300),
            multiplier: 2.0,
            jitter: Jitter::None,
            ..Policy::default()
        };
        let pauses = [1, 2, 3, 4, 5].map(|retry| pause(&policy, retry, 0.5).as_millis());
        assert_eq!(pauses, [50, 100, 200, 300, 300]);
    }
}
