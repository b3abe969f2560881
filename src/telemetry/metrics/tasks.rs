//! Metrics of the supervised tasks.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTask {
    task: String,
}

/// Counts restarts, by task.
#[derive(Clone, Debug, Default)]
pub struct TaskMetrics {
    restarted: Family<ByTask, Counter>,
}

impl TaskMetrics {
    /// Creates the series of a task, which counts its restarts.
    #[must_use]
    pub fn restarted(&self, task: &str) -> Counter {
        self.restarted.get_or_create_owned(&ByTask { task: task.to_owned() })
    }

    pub(super) fn family(&self) -> impl prometheus_client::registry::Metric + use<> {
        self.restarted.clone()
    }
}
