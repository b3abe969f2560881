//! New events as a part of a statement.

use diesel::sql_types::{Bool, Integer, Nullable, Text};

use super::{super::NewEvent, columns::rows};
use crate::model::lanes::Lanes;

rows! {
    #[doc = "Events that are stored with the items of a statement, such as requests."]
    NewEvents of NewEventRow {
        item: i32 as Integer,
        place: i32 as Integer,
        lane: i32 as Integer,
        slot: i32 as Integer,
        lifecycle: bool as Bool,
        source: &'a str as Text,
        event_id: &'a str as Text,
        content_hash: &'a str as Text,
        earlier_hash: Option<&'a str> as Nullable<Text>,
        event: &'a str as Text,
    }
}

/// Stores the events that the rest of the statement selects; it also names the time, `now`.
pub(super) const INSERT: &str = "\
    INSERT INTO outbox (lane, slot, lifecycle, source, event_id, content_hash, event, state, \
        created_at, refusals) \
    SELECT lane, slot, lifecycle, source, event_id, content_hash, event, 'pending', now, 0 FROM ";

impl<'a> NewEvents<'a> {
    /// Adds the events of an item, in their order.
    pub(super) fn add(&mut self, item: i32, events: &'a [NewEvent]) {
        for (place, new) in (0..).zip(events) {
            let slot = new.event.slot();
            self.push(NewEventRow {
                item,
                place,
                // For the program before this one, which knows no slots.
                lane: Lanes::SIXTEEN.lane_of(slot),
                slot,
                lifecycle: new.event.is_lifecycle(),
                source: &new.event.source,
                event_id: &new.event.id,
                content_hash: new.fingerprint.as_str(),
                earlier_hash: new.fingerprint.earlier(),
                event: new.event.document(),
            });
        }
    }
}
