//! Rows of the outbox.

use diesel::prelude::*;

use super::{
    super::{DeadLetter, NewEvent, PendingEvent, UnreadableEvent, schema},
    unreadable, value,
};
use crate::model::{events::Event, lanes::Lanes, time::from_micros};

pub(in super::super) const PENDING: &str = "pending";
pub(in super::super) const DELIVERED: &str = "delivered";
pub(in super::super) const DEAD: &str = "dead";

/// An event of the outbox, with every column but its number, which the database assigns.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = schema::outbox)]
pub(in super::super) struct OutboxRow {
    lane: i32,
    pub(in super::super) source: String,
    pub(in super::super) event_id: String,
    pub(in super::super) content_hash: String,
    event: String,
    state: String,
    created_at: i64,
    delivered_at: Option<i64>,
    refusals: i32,
    error: Option<String>,
    position: Option<String>,
    slot: Option<i32>,
    lifecycle: bool,
}

impl OutboxRow {
    pub(in super::super) fn new(new: &NewEvent, created_at: i64) -> Self {
        let slot = new.event.slot();
        Self {
            // For the program before this one, which knows no slots.
            lane: Lanes::SIXTEEN.lane_of(slot),
            source: new.event.source.clone(),
            event_id: new.event.id.clone(),
            content_hash: new.fingerprint.as_str().to_owned(),
            event: new.event.document().to_string(),
            state: PENDING.to_owned(),
            created_at,
            delivered_at: None,
            refusals: 0,
            error: None,
            position: None,
            slot: Some(slot),
            lifecycle: new.event.is_lifecycle(),
        }
    }
}

#[derive(Debug, Queryable, Selectable)]
#[diesel(table_name = schema::outbox)]
pub(in super::super) struct DeadRow {
    seq: i64,
    event: String,
    error: Option<String>,
    refusals: i32,
    created_at: i64,
}

impl DeadRow {
    pub(in super::super) fn read(self) -> DeadLetter {
        DeadLetter {
            seq: self.seq,
            event: value(self.event).ok(),
            error: self.error.unwrap_or_default(),
            refusals: self.refusals,
            accepted_at: from_micros(self.created_at),
        }
    }
}

/// An event that waits for delivery.
#[derive(Debug, QueryableByName)]
#[diesel(table_name = schema::outbox)]
pub(in super::super) struct PendingRow {
    seq: i64,
    lane: i32,
    event: String,
}

impl PendingRow {
    pub(in super::super) fn read(self) -> Result<PendingEvent, UnreadableEvent> {
        let Self { seq, lane, event } = self;
        match Event::stored(event.into()) {
            Ok(event) => Ok(PendingEvent { seq, lane, event }),
            Err(error) => Err(UnreadableEvent { seq, lane, reason: unreadable(error).to_string() }),
        }
    }
}
