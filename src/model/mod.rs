//! The domain model of the program: plain types without I/O.

pub mod backlog;
pub mod backoff;
pub mod chance;
pub mod circuit;
pub mod events;
pub mod executions;
pub mod ids;
pub mod json;
pub mod lanes;
#[cfg(test)]
pub(crate) mod simulated;
pub mod time;
