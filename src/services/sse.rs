//! Server-sent events: what is sent, ready to be sent to any number of clients.

use bytes::Bytes;

use crate::model::events::{Position, StoredEvent};

/// Which events a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    kind: Option<String>,
    subject: Option<String>,
}

impl Filter {
    /// `kind` is a type, or the beginning of types followed by `*`.
    #[must_use]
    pub fn new(kind: Option<String>, subject: Option<String>) -> Self {
        Self { kind, subject }
    }

    pub(super) fn admits(&self, kind: &str, subject: Option<&str>) -> bool {
        let kind_fits = self.kind.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => kind.starts_with(prefix),
            None => kind == wanted,
        });
        kind_fits && (self.subject.is_none() || self.subject.as_deref() == subject)
    }
}

/// An event, ready to be sent to any number of clients.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) position: Position,
    pub(super) kind: String,
    pub(super) subject: Option<String>,
    pub(super) text: Bytes,
}

impl Frame {
    pub(super) fn new(event: &StoredEvent) -> Self {
        #[derive(serde::Deserialize)]
        struct Attributes {
            #[serde(default, rename = "type")]
            kind: String,
            subject: Option<String>,
        }
        let attributes: Attributes = serde_json::from_str(&event.json)
            .unwrap_or(Attributes { kind: String::new(), subject: None });
        Self {
            position: event.position,
            kind: attributes.kind,
            subject: attributes.subject,
            text: message(None, Some(event.position), &event.json),
        }
    }
}

/// One server-sent event.
fn message(name: Option<&str>, id: Option<Position>, data: &str) -> Bytes {
    let mut text = String::with_capacity(data.len() + 48);
    if let Some(name) = name {
        text.push_str("event: ");
        text.push_str(name);
        text.push('\n');
    }
    if let Some(id) = id {
        text.push_str("id: ");
        text.push_str(&id.to_string());
        text.push('\n');
    }
    for line in data.lines() {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
    text.into()
}

/// Why a client cannot be given every event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// What follows its last event is no longer kept.
    Expired,
    /// Its last event is not known, as after the broker lost its data.
    Unknown,
    /// It read more slowly than events came.
    Slow,
}

impl Gap {
    pub(super) fn text(self, after: Position, resumes_after: Position) -> Bytes {
        let reason = match self {
            Self::Expired => "expired",
            Self::Unknown => "unknown",
            Self::Slow => "slow",
        };
        let data = serde_json::json!({
            "reason": reason,
            "last_event_id": after.to_string(),
            "resumes_after": resumes_after.to_string(),
        });
        message(Some("gap"), None, &data.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_admit_exact_types_and_prefixes() {
        let filter = |kind: &str| Filter::new(Some(kind.to_owned()), None);
        assert!(filter("task.created").admits("task.created", None));
        assert!(!filter("task.created").admits("task.created.x", None));
        assert!(filter("task.*").admits("task.created", None));
        assert!(!filter("task.*").admits("tasks", None));
        assert!(filter("*").admits("anything", None));
        let of_subject = Filter::new(None, Some("a".to_owned()));
        assert!(of_subject.admits("x", Some("a")));
        assert!(!of_subject.admits("x", None));
    }

    #[test]
    fn data_with_line_breaks_stays_one_event() {
        let text = message(Some("gap"), Some(Position { millis: 1, number: 2 }), "a\nb");
        assert_eq!(text, "event: gap\nid: 1-2\ndata: a\ndata: b\n\n");
    }
}
