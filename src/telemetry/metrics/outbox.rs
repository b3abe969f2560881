//! Metrics of accepted work.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use strum::{IntoStaticStr, VariantArray};

use super::Seconds;
use crate::model::backlog::Backlog;

/// The destination of accepted work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Destination {
    /// Events.
    EventBroker,
    /// Executions.
    ExecutionService,
}

impl Destination {
    /// Its name, the same as that of the connection.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Its name in a sentence.
    #[must_use]
    pub const fn as_words(self) -> &'static str {
        match self {
            Self::EventBroker => "event broker",
            Self::ExecutionService => "execution service",
        }
    }

    fn label(self) -> ByDestination {
        ByDestination { destination: self.as_str() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDestination {
    destination: &'static str,
}

#[derive(Clone, Debug, Default)]
pub(super) struct OutboxMetrics {
    rows: Family<ByDestination, Gauge>,
    oldest: Family<ByDestination, Seconds>,
    late: Family<ByDestination, Seconds>,
    accepted: Family<ByDestination, Counter>,
    delivered: Family<ByDestination, Counter>,
    dead_letters: Family<ByDestination, Gauge>,
    count_age: Seconds,
}

impl OutboxMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let outbox = Self::default();
        registry.register("outbox_rows", "Accepted work that is waiting", outbox.rows.clone());
        registry.register_with_unit(
            "outbox_oldest",
            "How long the oldest accepted work has waited",
            Unit::Seconds,
            outbox.oldest.clone(),
        );
        registry.register_with_unit(
            "outbox_late",
            "How long accepted work has been waiting for longer than outbox.degraded_after",
            Unit::Seconds,
            outbox.late.clone(),
        );
        registry.register(
            "outbox_accepted",
            "Work that was accepted, repetitions included",
            outbox.accepted.clone(),
        );
        registry.register(
            "outbox_delivered",
            "Accepted work that was delivered or started",
            outbox.delivered.clone(),
        );
        registry.register(
            "dead_letters",
            "Accepted work that was refused for good",
            outbox.dead_letters.clone(),
        );
        registry.register_with_unit(
            "outbox_count_age",
            "How long ago the waiting work was counted, by one instance for all",
            Unit::Seconds,
            outbox.count_age.clone(),
        );
        for &destination in Destination::VARIANTS {
            outbox.show(destination, &Backlog::default(), Duration::ZERO);
            outbox.accepted(destination, 0);
            outbox.delivered(destination, 0);
        }
        outbox
    }

    pub(super) fn show(&self, destination: Destination, backlog: &Backlog, late_for: Duration) {
        let label = destination.label();
        self.rows.get_or_create(&label).set(backlog.rows);
        let oldest = backlog.oldest.unwrap_or_default().as_secs_f64();
        self.oldest.get_or_create(&label).set(oldest);
        self.late.get_or_create(&label).set(late_for.as_secs_f64());
        self.dead_letters.get_or_create(&label).set(backlog.dead);
    }

    pub(super) fn show_count_age(&self, age: Duration) {
        self.count_age.set(age.as_secs_f64());
    }

    pub(super) fn accepted(&self, destination: Destination, rows: usize) {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        self.accepted.get_or_create(&destination.label()).inc_by(rows);
    }

    pub(super) fn delivered(&self, destination: Destination, rows: usize) {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        self.delivered.get_or_create(&destination.label()).inc_by(rows);
    }
}
