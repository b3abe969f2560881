//! Publishing events.

use crate::{
    backends::event_broker::EventBroker,
    connection::{Managed, Operation},
    error::Error,
    model::events::Event,
};

// A repeated event keeps its id, and consumers drop repeats by it; so publishing may be repeated.
const PUBLISH: Operation = Operation::idempotent("publish");

/// Publishes events through the broker.
#[derive(Clone, Debug)]
pub struct Events {
    broker: Managed<dyn EventBroker>,
}

impl Events {
    /// Publishes through `broker`.
    #[must_use]
    pub fn new(broker: Managed<dyn EventBroker>) -> Self {
        Self { broker }
    }

    /// Publishes the events in order, all or none, and returns once the broker has them.
    ///
    /// # Errors
    /// When the broker does not acknowledge; `outcome_unknown()` tells whether it may have them.
    pub async fn publish(&self, events: &[Event]) -> Result<(), Error> {
        self.broker.call(PUBLISH, |broker| async move { broker.publish(events).await }).await
    }
}
