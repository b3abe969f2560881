//! Pauses between attempts. Pure: time and chance are passed in.

use std::time::Duration;

/// Pauses that grow with each failure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The pause after the first failure.
    pub initial: Duration,
    /// The factor by which the pause grows with each failure.
    pub multiplier: f64,
    /// The longest pause.
    pub max: Duration,
}

impl Backoff {
    /// Creates pauses that double.
    #[must_use]
    pub const fn doubling(initial: Duration, max: Duration) -> Self {
        Self { initial, multiplier: 2.0, max }
    }

    /// Returns the pause after this many failures in a row; zero when nothing has failed.
    #[must_use]
    pub fn pause_after(&self, failures: u32) -> Duration {
        let Some(growths) = failures.checked_sub(1) else { return Duration::ZERO };
        let growth = self.multiplier.powi(i32::try_from(growths).unwrap_or(i32::MAX));
        let pause = self.initial.as_secs_f64() * growth;
        Duration::try_from_secs_f64(pause).unwrap_or(self.max).min(self.max)
    }
}

/// Returns a part of `pause`, at least the share `least` of it, so that callers that failed
/// together do not retry together. `least` and `chance` are in 0..=1.
#[must_use]
pub fn jittered(pause: Duration, least: f64, chance: f64) -> Duration {
    pause.mul_f64(least + (1.0 - least) * chance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pause_grows_and_is_never_longer_than_its_bound(
            initial in 1_u64..10_000, max in 1_u64..100_000, multiplier in 1.0_f64..10.0,
            failures in 1_u32..1_000, chance in 0.0_f64..=1.0, least in 0.0_f64..=1.0,
        ) {
            let (initial, max) = (Duration::from_millis(initial), Duration::from_millis(max));
            let backoff = Backoff { initial, multiplier, max };
            let pause = backoff.pause_after(failures);
            prop_assert!(pause <= max);
            prop_assert!(pause <= backoff.pause_after(failures + 1));
            let part = jittered(pause, least, chance);
            prop_assert!(part <= pause);
            // A duration has a resolution of one nanosecond.
            prop_assert!(part + Duration::from_nanos(1) >= pause.mul_f64(least));
        }
    }

    #[test]
    fn it_doubles_up_to_its_bound() {
        let backoff = Backoff::doubling(Duration::from_millis(50), Duration::from_millis(300));
        let pauses = [0, 1, 2, 3, 4, 5, u32::MAX].map(|n| backoff.pause_after(n).as_millis());
        assert_eq!(pauses, [0, 50, 100, 200, 300, 300, 300]);
    }
}
