//! Servers, the links to them, and the program, for the integration tests and the benchmarks.

mod client;
mod events;
pub(crate) mod faketime;
#[cfg(feature = "temporal")]
pub(crate) mod gateway;
#[cfg(feature = "redis")]
pub(crate) mod ledger;
mod program;
pub(crate) mod prometheus;
pub(crate) mod servers;
pub(crate) mod toxiproxy;

pub(crate) use self::{
    client::{answer, cloud_event, http_client, is_overloaded, metric, send_cloud_event},
    events::Events,
    program::{Service, Setup},
    servers::*,
};
