//! Labels with a closed set of values. Every series exists from the start.

use std::{fmt, marker::PhantomData};

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use strum::{IntoStaticStr, VariantArray};

/// The outcome of a call, a build or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// It succeeded.
    Success,
    /// It failed.
    Failure,
}

impl Outcome {
    /// The outcome of a result.
    #[must_use]
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Success } else { Self::Failure }
    }
}

/// Part of the time to get a pooled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// Waiting for a free connection.
    Wait,
    /// Opening a connection.
    Connect,
    /// Checking a connection before use.
    Validate,
}

/// Why a call was refused before it reached the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Rejection {
    /// The circuit breaker lets no call pass.
    CircuitOpen,
    /// Too many calls are waiting already.
    QueueFull,
    /// No slot became free in time.
    QueueTimeout,
}

/// The labels of a series: the connection, and optionally another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct By {
    pub(super) connection: &'static str,
    pub(super) label: Option<(&'static str, &'static str)>,
}

impl EncodeLabelSet for By {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = [Some(("connection", self.connection)), self.label];
        labels.into_iter().flatten().collect::<Vec<_>>().encode(encoder)
    }
}

/// One metric for each value of a closed-set label.
#[derive(Clone, Debug)]
pub struct PerLabel<L, M> {
    metrics: Vec<M>,
    label: PhantomData<fn(L)>,
}

impl<L, M> PerLabel<L, M>
where
    L: Copy + PartialEq + Into<&'static str> + VariantArray,
{
    pub(super) fn new(
        name: &'static str,
        metric: impl Fn(Option<(&'static str, &'static str)>) -> M,
    ) -> Self {
        let metrics = L::VARIANTS.iter().map(|value| metric(Some((name, (*value).into()))));
        Self { metrics: metrics.collect(), label: PhantomData }
    }

    /// The metric of a value.
    ///
    /// # Panics
    /// Never: each value has a metric.
    #[must_use]
    pub fn of(&self, value: L) -> &M {
        let place = L::VARIANTS.iter().position(|one| *one == value);
        &self.metrics[place.expect("every value is listed")]
    }

    /// All metrics, with their label values.
    pub fn iter(&self) -> impl Iterator<Item = (L, &M)> {
        L::VARIANTS.iter().copied().zip(&self.metrics)
    }
}
