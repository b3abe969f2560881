//! The event broker as its callers see it: the methods of its trait, each through the guard.

use super::EventBroker;
use crate::{
    connection::guarded,
    model::events::{Event, Position, Range, StoredEvent},
};

guarded! {
    dyn EventBroker;

    EventBroker {
        // A repeated event keeps its id, by which consumers drop repetitions.
        idempotent publish(events: &[&Event]) -> Vec<Position>;
        idempotent lost(places: &[Position]) -> Vec<Position>;
        idempotent range() -> Range;
        idempotent read(after: Position, limit: usize) -> Vec<StoredEvent>;
    }
}
