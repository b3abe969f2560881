//! The entries of the stream, and the events in them.

use crate::{
    error::{Error, ErrorKind},
    model::events::{Position, StoredEvent},
};

/// The field of a stream's entry that holds the event.
pub(super) const FIELD: &str = "event";

/// The fields and values of an entry; bytes, because any client can write any content.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;
pub(super) type Entries = Vec<(String, Fields)>;

/// Consecutive entries: the events among them, and the place of the last entry.
pub(super) struct Page {
    pub(super) events: Vec<StoredEvent>,
    pub(super) end: Option<Position>,
}

impl Page {
    pub(super) fn of(entries: impl IntoIterator<Item = (String, Fields)>) -> Self {
        let mut page = Self { events: Vec::new(), end: None };
        for (id, fields) in entries {
            let Ok(position) = id.parse() else { continue };
            page.end = Some(position);
            let event = fields.into_iter().find(|(name, _)| name == FIELD.as_bytes());
            if let Some(json) = event.and_then(|(_, value)| String::from_utf8(value).ok()) {
                page.events.push(StoredEvent { position, json: json.into() });
            }
        }
        page
    }
}

pub(super) fn parse_place(id: &str) -> Result<Position, Error> {
    id.parse().map_err(|_| {
        let message = format!("the server names a place {id:?}, which is no id of a stream");
        Error::new(ErrorKind::Incompatible, message)
    })
}
