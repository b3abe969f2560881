//! The use cases. They see the model and the traits of the families, and no backend.

pub mod dead_letters;
pub mod event_stream;
pub mod events;
pub mod executions;
mod follower;
mod records;
pub mod relay;
mod sse;
