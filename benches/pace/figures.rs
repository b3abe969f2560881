//! Named figures of one measurement.

use crate::usage::Spent;

pub(crate) const STARTED: &str = "started a second";
pub(crate) const ACCEPTED: &str = "accepted a second";
pub(crate) const P50: &str = "p50, ms";
pub(crate) const P99: &str = "p99, ms";
pub(crate) const REFUSED: &str = "answers 503";
pub(crate) const FAILED: &str = "other failures";

/// Figures by name, in the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(Vec<(String, f64)>);

impl Figures {
    pub(crate) fn with(mut self, name: impl Into<String>, value: f64) -> Self {
        self.0.push((name.into(), value));
        self
    }

    /// With the processor time that a process took for each of `count` pieces of work.
    pub(crate) fn with_cost(self, used: &Spent, process: &str, count: f64) -> Self {
        let micros = used.seconds_of(process).map(|seconds| seconds * 1e6 / count.max(1.0));
        match micros {
            Some(micros) => self.with(format!("CPU of {process}, µs each"), micros),
            None => self,
        }
    }

    /// With the processor time of all processes, for each of `count` pieces of work.
    pub(crate) fn with_costs(self, used: &Spent, count: f64) -> Self {
        let add = |figures: Self, process: &&str| figures.with_cost(used, process, count);
        let figures = used.processes().collect::<Vec<_>>().iter().fold(self, add);
        figures.with_machine(used)
    }

    /// With what shows whether the benchmark or the machine was the limit.
    pub(crate) fn with_machine(self, used: &Spent) -> Self {
        self.with("CPU of the benchmark, % of a core", used.own * 100.0)
            .with("idle share of the machine, %", used.idle * 100.0)
    }

    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find_map(|(known, value)| (known == name).then_some(*value))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

/// A count as a number to calculate with.
pub(crate) fn number(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

/// The value below which `share` of the sorted values lie.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a length is a valid length"
    )]
    let index = (number(sorted.len()) * share) as usize;
    sorted[index.min(last)]
}

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _odd => values[middle],
    }
}
