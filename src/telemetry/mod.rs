//! Logs, metrics and trace context.

pub mod logs;
pub mod metrics;
pub mod traces;
