//! The metrics of the connections, one to a line: help, name, kind and labels.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{
    Acquisition, HistogramFamily, Seconds,
    labels::{By, Outcome, PerLabel, Phase, Rejection},
    seconds,
};
use crate::{error::ErrorKind, model::circuit::Circuit};

/// Upper bounds of outages: one second to a day.
const OUTAGE_SECONDS: [f64; 9] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0];

/// A gauge from 0 to 1.
type Fraction = Gauge<f64, AtomicU64>;

fn outage_seconds() -> Histogram {
    Histogram::new(OUTAGE_SECONDS)
}

/// Declares the metrics of a connection. The doc comment is the help text, the text is the name
/// without prefix, unit and `_total`; a metric in brackets has a series for each value of the label.
macro_rules! connection_metrics {
    ($(
        #[doc = $help:literal]
        $field:ident: $kind:ident $([$key:literal: $label:ty])? = $new:path, $name:literal $($unit:ident)?;
    )*) => {
        /// The families that all connections share.
        #[derive(Clone, Debug)]
        pub(super) struct ConnectionFamilies {
            $($field: Family<By, $kind, fn() -> $kind>,)*
            call_seconds: HistogramFamily<ByCall>,
        }

        impl ConnectionFamilies {
            pub(super) fn register(registry: &mut Registry) -> Self {
                $(
                    let $field = Family::new_with_constructor($new as fn() -> $kind);
                    let help = $help.trim().trim_end_matches('.');
                    connection_metrics!(@register registry, $name, help, $field $(, $unit)?);
                )*
                let call_seconds = HistogramFamily::new_with_constructor(seconds as fn() -> _);
                let help = "Guarded calls, waiting and retries included";
                registry.register_with_unit("call", help, Unit::Seconds, call_seconds.clone());
                Self { $($field,)* call_seconds }
            }

            pub(super) fn handles(&self, connection: &'static str) -> ConnectionMetrics {
                ConnectionMetrics {
                    connection,
                    // Owned handles, because the guard of one series would block the next series of
                    // its family.
                    $($field: connection_metrics!(@handle [$($key)?] |label| {
                        self.$field.get_or_create_owned(&By { connection, label })
                    }),)*
                    acquisition: Arc::default(),
                    call_seconds: self.call_seconds.clone(),
                    calls: Arc::default(),
                }
            }
        }

        /// The metrics of one connection.
        #[derive(Clone, Debug)]
        pub struct ConnectionMetrics {
            connection: &'static str,
            $(
                #[doc = $help]
                pub $field: connection_metrics!(@type $kind $([$label])?),
            )*
            /// Time until calls had what they need, for the connection's own report.
            pub acquisition: Arc<Acquisition>,
            call_seconds: HistogramFamily<ByCall>,
            /// The metrics of each operation. A search among a few names is faster than hashing the
            /// labels of each call.
            calls: Arc<ArcSwap<Vec<CallSeries>>>,
        }
    };
    (@register $registry:ident, $name:literal, $help:ident, $field:ident) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $name:literal, $help:ident, $field:ident, $unit:ident) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
    (@handle [] $new:expr) => { ($new)(None) };
    (@handle [$key:literal] $new:expr) => { PerLabel::new($key, $new) };
    (@type $kind:ident) => { $kind };
    (@type $kind:ident [$label:ty]) => { PerLabel<$label, $kind> };
}

connection_metrics! {
    /// Whether the connection works.
    up: Gauge = Gauge::default, "connection_up";
    /// Backends built.
    builds: Counter["outcome": Outcome] = Counter::default, "connection_builds";
    /// Time to build a backend.
    build_seconds: Histogram = seconds, "connection_build" Seconds;
    /// Calls served by a built backend.
    uses: Counter = Counter::default, "connection_uses";
    /// Maximum number of pooled connections.
    pool_max: Gauge = Gauge::default, "connection_pool_max";
    /// Checked-out connections.
    pool_in_use: Gauge = Gauge::default, "connection_pool_in_use";
    /// Idle pooled connections.
    pool_idle: Gauge = Gauge::default, "connection_pool_idle";
    /// Calls waiting for a pooled connection.
    pool_waiting: Gauge = Gauge::default, "connection_pool_waiting";
    /// Checkouts held for longer than `pool.leak_after`.
    leaks: Counter = Counter::default, "connection_leaks";
    /// Time to get a pooled connection, by phase.
    acquire_seconds: Histogram["phase": Phase] = seconds, "connection_acquire" Seconds;
    /// Length of outages, from the first failed probe to the first good one.
    recovery_seconds: Histogram = outage_seconds, "connection_recovery" Seconds;
    /// Attempts of guarded calls.
    call_attempts: Counter = Counter::default, "call_attempts";
    /// Attempts that repeated another one.
    call_retries: Counter = Counter::default, "call_retries";
    /// Calls refused before they reached the backend, by reason.
    call_rejected: Counter["reason": Rejection] = Counter::default, "call_rejected";
    /// Failed attempts by class of error.
    call_errors: Counter["class": ErrorKind] = Counter::default, "call_errors";
    /// How full the retry budget is.
    retry_budget: Fraction = Fraction::default, "retry_budget_available_ratio";
    /// 1 for the state that the circuit breaker is in.
    breaker_state: Gauge["state": Circuit] = Gauge::default, "circuit_breaker_state";
    /// Changes of the circuit breaker's state.
    breaker_transitions: Counter["to": Circuit] = Counter::default, "circuit_breaker_transitions";
    /// Background health checks.
    probes: Counter["outcome": Outcome] = Counter::default, "probes";
    /// Time of a probe.
    probe_seconds: Histogram = seconds, "probe" Seconds;
    /// Time since the last finished probe.
    probe_age: Seconds = Seconds::default, "probe_age" Seconds;
    /// Time between two probes, as configured.
    probe_interval: Seconds = Seconds::default, "probe_interval" Seconds;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    connection: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug)]
struct CallSeries {
    operation: &'static str,
    success: Histogram,
    failure: Histogram,
}

impl ConnectionMetrics {
    /// Creates the series of an operation.
    pub fn declare_call(&self, operation: &'static str) {
        let seconds = |outcome: Outcome| {
            let labels = ByCall { connection: self.connection, operation, outcome: outcome.into() };
            self.call_seconds.get_or_create_owned(&labels)
        };
        let series = CallSeries {
            operation,
            success: seconds(Outcome::Success),
            failure: seconds(Outcome::Failure),
        };
        self.calls.rcu(|calls| {
            let others = calls.iter().filter(|one| one.operation != operation).cloned();
            others.chain([series.clone()]).collect::<Vec<_>>()
        });
    }

    /// Counts a guarded call.
    pub fn call(&self, operation: &'static str, outcome: Outcome, took: Duration) {
        let calls = self.calls.load();
        // Nearly always both are the same constant, and comparing pointers is faster than comparing
        // text.
        let same_constant = calls.iter().find(|one| std::ptr::eq(one.operation, operation));
        let same_name = || calls.iter().find(|one| one.operation == operation);
        let Some(series) = same_constant.or_else(same_name) else {
            self.declare_call(operation);
            return self.call(operation, outcome, took);
        };
        let seconds = match outcome {
            Outcome::Success => &series.success,
            Outcome::Failure => &series.failure,
        };
        seconds.observe(took.as_secs_f64());
    }

    /// Sets the gauges of the pool, if the backend has one.
    pub fn show_pool(&self, max: usize, in_use: usize, idle: usize, waiting: usize) {
        let gauges = [
            (&self.pool_max, max),
            (&self.pool_in_use, in_use),
            (&self.pool_idle, idle),
            (&self.pool_waiting, waiting),
        ];
        for (gauge, value) in gauges {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Sets the state of the circuit breaker.
    pub fn show_breaker(&self, state: Circuit) {
        for (one, gauge) in self.breaker_state.iter() {
            gauge.set(i64::from(one == state));
        }
    }
}
