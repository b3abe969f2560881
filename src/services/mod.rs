//! The use cases. They see the model and the traits of the families, and no backend.

pub mod acceptor;
pub mod dead_letters;
mod depth;
mod endings;
pub mod event_stream;
pub mod events;
pub mod executions;
mod follower;
mod hand_over;
mod records;
pub mod relay;
mod sse;
pub mod transfer;
