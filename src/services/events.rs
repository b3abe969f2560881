//! Publishing events.

use crate::{
    backends::event_broker::EventBroker,
    connection::{Managed, Operation},
    error::Error,
    model::events::Event,
    telemetry::traces::TraceContext,
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
        broker.declare(&[PUBLISH]);
        Self { broker }
    }

    /// Publishes the events in order, all or none, and returns once the broker has them. Events
    /// that name no trace are part of the one that the caller serves.
    ///
    /// # Errors
    /// When the broker does not acknowledge; `outcome_unknown()` tells whether it may have them.
    pub async fn publish(&self, events: &mut [Event]) -> Result<(), Error> {
        if let Some(trace) = TraceContext::current() {
            let traceparent = trace.to_string();
            for event in &mut *events {
                let extension = event.extensions.entry("traceparent".to_owned());
                extension.or_insert_with(|| traceparent.clone().into());
            }
        }
        let events = &*events;
        self.broker.call(PUBLISH, |broker| async move { broker.publish(events).await }).await
    }
}
