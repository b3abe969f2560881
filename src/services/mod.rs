//! The use cases, in folders by the destination of the work. They use the model and the clients of
//! the families, and no backend.

pub mod accept;
pub mod commits;
pub mod dead_letters;
mod depth;
pub mod events;
pub mod executions;
pub mod housekeeping;
pub mod transfer;
