//! The metrics of the connections: what each counts, and the families that they share.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwap;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{Acquisition, HistogramFamily, Seconds, seconds};
use crate::error::ErrorKind;

/// Upper bounds of outages: one second to a day.
const OUTAGE_SECONDS: [f64; 9] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0];

/// The states of a circuit breaker, as `connection::Circuit` names them.
const BREAKER_STATES: [&str; 5] = ["closed", "open", "half_open", "forced_open", "forced_closed"];

/// A gauge from 0 to 1.
type Fraction = Gauge<f64, AtomicU64>;

/// A call or a build went well or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It went well.
    Success,
    /// It did not.
    Failure,
}

impl Outcome {
    /// The outcome of a result.
    #[must_use]
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Success } else { Self::Failure }
    }
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
        .encode(encoder)
    }
}

/// Why a call was refused before it reached the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The circuit breaker lets no call pass.
    CircuitOpen,
    /// Too many calls wait already.
    QueueFull,
    /// No place became free in time.
    QueueTimeout,
}

impl Rejection {
    const ALL: [Self; 3] = [Self::CircuitOpen, Self::QueueFull, Self::QueueTimeout];

    const fn as_str(self) -> &'static str {
        match self {
            Self::CircuitOpen => "circuit_open",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByConnection {
    connection: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    connection: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPhase {
    connection: &'static str,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    connection: &'static str,
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    connection: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    connection: &'static str,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTarget {
    connection: &'static str,
    to: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCall {
    connection: &'static str,
    operation: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
pub(super) struct ConnectionFamilies {
    up: Family<ByConnection, Gauge>,
    builds: Family<ByOutcome, Counter>,
    build_seconds: HistogramFamily<ByConnection>,
    uses: Family<ByConnection, Counter>,
    pool_max: Family<ByConnection, Gauge>,
    pool_in_use: Family<ByConnection, Gauge>,
    pool_idle: Family<ByConnection, Gauge>,
    pool_waiting: Family<ByConnection, Gauge>,
    leaks: Family<ByConnection, Counter>,
    acquire_seconds: HistogramFamily<ByPhase>,
    recovery_seconds: HistogramFamily<ByConnection>,
    call_seconds: HistogramFamily<ByCall>,
    call_attempts: Family<ByConnection, Counter>,
    call_retries: Family<ByConnection, Counter>,
    call_rejected: Family<ByReason, Counter>,
    call_errors: Family<ByClass, Counter>,
    retry_budget: Family<ByConnection, Fraction>,
    breaker_state: Family<ByState, Gauge>,
    breaker_transitions: Family<ByTarget, Counter>,
    probes: Family<ByOutcome, Counter>,
    probe_seconds: HistogramFamily<ByConnection>,
    probe_age: Family<ByConnection, Seconds>,
    probe_interval: Family<ByConnection, Seconds>,
}

fn outage_seconds() -> Histogram {
    Histogram::new(OUTAGE_SECONDS)
}

impl ConnectionFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self {
            up: Family::default(),
            builds: Family::default(),
            build_seconds: HistogramFamily::new_with_constructor(seconds as fn() -> _),
            uses: Family::default(),
            pool_max: Family::default(),
            pool_in_use: Family::default(),
            pool_idle: Family::default(),
            pool_waiting: Family::default(),
            leaks: Family::default(),
            acquire_seconds: HistogramFamily::new_with_constructor(seconds as fn() -> _),
            recovery_seconds: HistogramFamily::new_with_constructor(outage_seconds as fn() -> _),
            call_seconds: HistogramFamily::new_with_constructor(seconds as fn() -> _),
            call_attempts: Family::default(),
            call_retries: Family::default(),
            call_rejected: Family::default(),
            call_errors: Family::default(),
            retry_budget: Family::default(),
            breaker_state: Family::default(),
            breaker_transitions: Family::default(),
            probes: Family::default(),
            probe_seconds: HistogramFamily::new_with_constructor(seconds as fn() -> _),
            probe_age: Family::default(),
            probe_interval: Family::default(),
        };
        let all = families.clone();
        registry.register("connection_up", "Whether the connection works", all.up);
        registry.register("connection_builds", "Backends built", all.builds);
        registry.register_with_unit(
            "connection_build",
            "Time to build a backend",
            Unit::Seconds,
            all.build_seconds,
        );
        registry.register("connection_uses", "Calls served by a built backend", all.uses);
        registry.register("connection_pool_max", "Bound of pooled connections", all.pool_max);
        registry.register("connection_pool_in_use", "Checked-out connections", all.pool_in_use);
        registry.register("connection_pool_idle", "Idle pooled connections", all.pool_idle);
        registry.register("connection_pool_waiting", "Calls waiting for one", all.pool_waiting);
        registry.register("connection_leaks", "Checkouts held for too long", all.leaks);
        registry.register_with_unit(
            "connection_acquire",
            "Time to get a connection, by phase",
            Unit::Seconds,
            all.acquire_seconds,
        );
        registry.register_with_unit(
            "connection_recovery",
            "Length of outages, from the first failed probe to the first good one",
            Unit::Seconds,
            all.recovery_seconds,
        );
        registry.register_with_unit(
            "call",
            "Guarded calls, waiting and retries included",
            Unit::Seconds,
            all.call_seconds,
        );
        registry.register("call_attempts", "Attempts of guarded calls", all.call_attempts);
        registry.register("call_retries", "Attempts that repeated another one", all.call_retries);
        registry.register(
            "call_rejected",
            "Calls refused before they reached the backend, by reason",
            all.call_rejected,
        );
        registry.register("call_errors", "Failed attempts by class of error", all.call_errors);
        registry.register(
            "retry_budget_available_ratio",
            "How full the retry budget is",
            all.retry_budget,
        );
        registry.register(
            "circuit_breaker_state",
            "1 for the state that the circuit breaker is in",
            all.breaker_state,
        );
        registry.register(
            "circuit_breaker_transitions",
            "Changes of the circuit breaker's state",
            all.breaker_transitions,
        );
        registry.register("probes", "Background health checks", all.probes);
        registry.register_with_unit("probe", "Time of a probe", Unit::Seconds, all.probe_seconds);
        registry.register_with_unit(
            "probe_age",
            "Time since the last finished probe",
            Unit::Seconds,
            all.probe_age,
        );
        registry.register_with_unit(
            "probe_interval",
            "Time between two probes, as configured",
            Unit::Seconds,
            all.probe_interval,
        );
        families
    }

    pub(super) fn handles(&self, connection: &'static str) -> ConnectionMetrics {
        // Owned handles: a guard of one series would lock out the next of the same family.
        let by = ByConnection { connection };
        let outcome = |outcome| ByOutcome { connection, outcome };
        let phase =
            |phase| self.acquire_seconds.get_or_create_owned(&ByPhase { connection, phase });
        ConnectionMetrics {
            connection,
            up: self.up.get_or_create_owned(&by),
            builds: self.builds.get_or_create_owned(&outcome(Outcome::Success)),
            build_failures: self.builds.get_or_create_owned(&outcome(Outcome::Failure)),
            build_seconds: self.build_seconds.get_or_create_owned(&by),
            uses: self.uses.get_or_create_owned(&by),
            pool_max: self.pool_max.get_or_create_owned(&by),
            pool_in_use: self.pool_in_use.get_or_create_owned(&by),
            pool_idle: self.pool_idle.get_or_create_owned(&by),
            pool_waiting: self.pool_waiting.get_or_create_owned(&by),
            leaks: self.leaks.get_or_create_owned(&by),
            acquisition: Arc::default(),
            acquire_wait: phase("wait"),
            acquire_connect: phase("connect"),
            acquire_validate: phase("validate"),
            recovery_seconds: self.recovery_seconds.get_or_create_owned(&by),
            call_attempts: self.call_attempts.get_or_create_owned(&by),
            call_retries: self.call_retries.get_or_create_owned(&by),
            call_rejected: Rejection::ALL.map(|reason| {
                let labels = ByReason { connection, reason: reason.as_str() };
                self.call_rejected.get_or_create_owned(&labels)
            }),
            call_errors: ErrorKind::ALL.map(|kind| {
                let labels = ByClass { connection, class: kind.as_str() };
                self.call_errors.get_or_create_owned(&labels)
            }),
            retry_budget: self.retry_budget.get_or_create_owned(&by),
            breaker_state: BREAKER_STATES.map(|state| {
                self.breaker_state.get_or_create_owned(&ByState { connection, state })
            }),
            breaker_transitions: BREAKER_STATES.map(|to| {
                self.breaker_transitions.get_or_create_owned(&ByTarget { connection, to })
            }),
            probes: self.probes.get_or_create_owned(&outcome(Outcome::Success)),
            probe_failures: self.probes.get_or_create_owned(&outcome(Outcome::Failure)),
            probe_seconds: self.probe_seconds.get_or_create_owned(&by),
            probe_age: self.probe_age.get_or_create_owned(&by),
            probe_interval: self.probe_interval.get_or_create_owned(&by),
            call_seconds: self.call_seconds.clone(),
            calls: Arc::default(),
        }
    }
}

/// The metrics of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    connection: &'static str,
    /// Whether the connection works.
    pub up: Gauge,
    /// Backends built.
    pub builds: Counter,
    /// Builds that failed.
    pub build_failures: Counter,
    /// Time to build a backend.
    pub build_seconds: Histogram,
    /// Calls served by a built backend.
    pub uses: Counter,
    /// Bound of pooled connections.
    pub pool_max: Gauge,
    /// Checked-out pooled connections.
    pub pool_in_use: Gauge,
    /// Idle pooled connections.
    pub pool_idle: Gauge,
    /// Calls waiting for a pooled connection.
    pub pool_waiting: Gauge,
    /// Checkouts held for longer than `pool.leak_after`.
    pub leaks: Counter,
    /// Time until calls had what they need, for the connection's own report.
    pub acquisition: Arc<Acquisition>,
    /// Time waiting for a free pooled connection.
    pub acquire_wait: Histogram,
    /// Time making a connection.
    pub acquire_connect: Histogram,
    /// Time checking a pooled connection before use.
    pub acquire_validate: Histogram,
    /// Length of outages.
    pub recovery_seconds: Histogram,
    /// Attempts of guarded calls.
    pub call_attempts: Counter,
    /// Attempts that repeated another one.
    pub call_retries: Counter,
    call_rejected: [Counter; Rejection::ALL.len()],
    call_errors: [Counter; ErrorKind::ALL.len()],
    /// How full the retry budget is.
    pub retry_budget: Fraction,
    breaker_state: [Gauge; BREAKER_STATES.len()],
    breaker_transitions: [Counter; BREAKER_STATES.len()],
    /// Good probes.
    pub probes: Counter,
    /// Failed probes.
    pub probe_failures: Counter,
    /// Time of a probe.
    pub probe_seconds: Histogram,
    /// Time since the last finished probe.
    pub probe_age: Seconds,
    /// Time between two probes, as configured.
    pub probe_interval: Seconds,
    call_seconds: HistogramFamily<ByCall>,
    /// Those of the operations called so far: a search among a few names is quicker than to hash
    /// the labels of each call.
    calls: Arc<ArcSwap<Vec<CallSeries>>>,
}

#[derive(Clone, Debug)]
struct CallSeries {
    operation: &'static str,
    success: Histogram,
    failure: Histogram,
}

impl ConnectionMetrics {
    /// Makes the series of an operation.
    pub fn declare_call(&self, operation: &'static str) {
        let seconds = |outcome| {
            let labels = ByCall { connection: self.connection, operation, outcome };
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
        // Nearly always it is the very same constant, which is quicker seen than the same letters.
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

    /// Shows how full the pool is; nothing of a backend that has none.
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

    /// Counts a call that was refused before it reached the backend.
    pub fn rejected(&self, reason: Rejection) {
        if let Some(index) = Rejection::ALL.iter().position(|one| *one == reason) {
            self.call_rejected[index].inc();
        }
    }

    /// Counts a change of the circuit breaker to `state`.
    pub fn breaker_changed(&self, state: &str) {
        if let Some(index) = BREAKER_STATES.iter().position(|one| *one == state) {
            self.breaker_transitions[index].inc();
        }
    }

    /// Shows the state that the circuit breaker is in.
    pub fn show_breaker(&self, state: &str) {
        for (name, gauge) in BREAKER_STATES.iter().zip(&self.breaker_state) {
            gauge.set(i64::from(*name == state));
        }
    }

    /// Counts a failed attempt.
    pub fn error(&self, kind: ErrorKind) {
        let index = ErrorKind::ALL.iter().position(|one| *one == kind);
        if let Some(counter) = index.and_then(|index| self.call_errors.get(index)) {
            counter.inc();
        }
    }
}
