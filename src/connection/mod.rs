//! Managed connections: made once, reused by every request, watched, closed cleanly.
//!
//! This module is generic over the family of backends and knows none of them. A
//! [`Registry`] of factories builds a backend; a [`Managed`] slot builds it once, hands it to every
//! caller through its guard, probes it, replaces it and closes it.

mod breaker;
mod budget;
mod build;
mod census;
mod check;
mod client;
mod context;
mod guard;
mod limit;
mod live;
mod managed;
mod operation;
mod probe;
mod pulse;
mod registry;
mod reload;
mod report;
mod slot;
mod standing;
#[cfg(test)]
mod tests;
mod timeline;
mod window;

use std::fmt::Debug;

use async_trait::async_trait;

pub(crate) use self::client::guarded;
pub use self::{
    breaker::{Breaker, Change, Force, Pass, Refusal, Sample},
    check::Checked,
    client::Client,
    context::{current_operation, deadline, was_cut_off, within},
    guard::Policies,
    live::Lease,
    managed::{Managed, Settings},
    operation::Operation,
    registry::{BuildContext, Factory, Registry},
    reload::Prepared,
    report::{Circuit, ConnectionReport, ProbeReport, Service},
    timeline::{Subject, Transition},
};
use crate::error::Error;

/// The operations that every backend of every family supports.
#[async_trait]
pub trait Backend: Debug + Send + Sync + 'static {
    /// Checks that the backend does its work, by doing a little of it.
    ///
    /// Runs in the background on a pooled connection of its own where the backend has a pool, so
    /// that a busy pool does not look like an outage.
    ///
    /// # Errors
    /// Any error that would make real calls fail.
    ///
    /// # Cancel safety
    /// May be dropped at any await; the next probe starts from the beginning.
    async fn probe(&self) -> Result<(), Error>;

    /// Releases the backend's resources. Called once, after its last caller has finished.
    ///
    /// # Cancel safety
    /// Dropping it leaves the rest to the operating system.
    async fn close(&self);

    /// The state of the backend's pool, if it has one.
    fn pool(&self) -> Option<PoolStatus> {
        None
    }
}

/// A family of backends, as its callers see it.
pub trait Family: Backend {
    /// Every operation that a guarded call can name. Their series exist from the start.
    const OPERATIONS: &'static [Operation];
}

/// The state of a pool at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// The most pooled connections at once.
    pub max: usize,
    /// Checked out.
    pub in_use: usize,
    /// Open and free.
    pub idle: usize,
    /// Calls waiting for one.
    pub waiting: usize,
}
