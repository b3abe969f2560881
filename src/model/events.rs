//! `CloudEvents` 1.0 and places in the stream of events.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{ids, json, time};

/// The `source` of events that name none.
pub const DEFAULT_SOURCE: &str = "agentarea-api";

/// The longest `id`, `source`, `type` or `subject`.
pub const MAX_ATTRIBUTE: usize = 1024;

/// Events of one subject share one of so many lanes, in which they keep their order.
pub const LANES: i32 = 16;

/// A `CloudEvents` 1.0 event in the JSON format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Always `1.0`.
    pub specversion: String,
    /// Unique within the source.
    pub id: String,
    /// Where the event happened, a URI reference.
    pub source: String,
    /// What happened, such as `task.created`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it happened to; events of one subject keep their order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// When it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The media type of `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacontenttype: Option<String>,
    /// The schema of `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataschema: Option<String>,
    /// The payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// The payload when it is binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// Extension attributes, `traceparent` among them.
    #[serde(flatten)]
    pub extensions: BTreeMap<String, Value>,
}

impl Event {
    /// A new event of ours with JSON data.
    #[must_use]
    pub fn new(kind: impl Into<String>, subject: Option<String>, data: Option<Value>) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id: ids::new_id(),
            source: DEFAULT_SOURCE.to_owned(),
            kind: kind.into(),
            subject,
            time: Some(time::now().to_string()),
            datacontenttype: data.is_some().then(|| "application/json".to_owned()),
            dataschema: None,
            data,
            data_base64: None,
            extensions: BTreeMap::new(),
        }
    }

    /// Reads and checks an event in the JSON format.
    ///
    /// # Errors
    /// Says which attribute breaks which rule of the specification.
    pub fn from_json(value: Value) -> Result<Self, String> {
        check_types(&value)?;
        let event: Self = serde_json::from_value(value).map_err(|error| error.to_string())?;
        event.check()?;
        Ok(event)
    }

    /// The event in the JSON format.
    ///
    /// # Panics
    /// Never: every part of an event is representable in JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and JSON values serialise")
    }

    /// The lane in which it is delivered: that of its subject, or any if it has none. Processes of
    /// different versions must agree on it, so it does not come from the standard library's hash.
    #[must_use]
    pub fn lane(&self) -> i32 {
        let of = self.subject.as_deref().unwrap_or(&self.id);
        let digest = Sha256::new().chain_update(&self.source).chain_update([0]).chain_update(of);
        i32::from(digest.finalize()[0]) % LANES
    }

    /// Checks the rules of the specification.
    ///
    /// # Errors
    /// Says which attribute breaks which rule.
    pub fn check(&self) -> Result<(), String> {
        if self.specversion != "1.0" {
            return Err(format!("`specversion` must be \"1.0\", not {:?}", self.specversion));
        }
        check_text("id", &self.id)?;
        check_text("source", &self.source)?;
        check_text("type", &self.kind)?;
        if let Some(subject) = &self.subject {
            check_text("subject", subject)?;
        }
        if let Some(time) = &self.time {
            time.parse::<time::Timestamp>()
                .map_err(|_| format!("`time` must be an RFC 3339 date-time, not {time:?}"))?;
        }
        if self.data.is_some() && self.data_base64.is_some() {
            return Err("`data` and `data_base64` exclude each other".to_owned());
        }
        if let Some(data) = &self.data {
            json::check_depth(data).map_err(|problem| format!("`data` {problem}"))?;
        }
        self.extensions.iter().try_for_each(|(name, value)| check_extension(name, value))
    }
}

/// The attributes that are text, and whether an event must have them.
const TEXTS: [(&str, bool); 9] = [
    ("specversion", true),
    ("id", true),
    ("source", true),
    ("type", true),
    ("subject", false),
    ("time", false),
    ("datacontenttype", false),
    ("dataschema", false),
    ("data_base64", false),
];

/// Names the attribute that has a wrong type: serde's own message loses it with `flatten`.
fn check_types(value: &Value) -> Result<(), String> {
    TEXTS.iter().try_for_each(|&(name, required)| match value.get(name) {
        None if required => Err(format!("`{name}` is missing")),
        Some(Value::Null) if !required => Ok(()),
        None | Some(Value::String(_)) => Ok(()),
        Some(other) => Err(format!("`{name}`: expected text, found {}", json::found(other))),
    })
}

fn check_text(name: &str, value: &str) -> Result<(), String> {
    if value.is_empty() || value.len() > MAX_ATTRIBUTE || value.chars().any(char::is_control) {
        return Err(format!(
            "`{name}` must have 1 to {MAX_ATTRIBUTE} bytes and no control characters"
        ));
    }
    Ok(())
}

fn check_extension(name: &str, value: &Value) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(format!("`{name}`: an attribute's name has only a-z and 0-9"));
    }
    match value {
        Value::String(_) | Value::Bool(_) | Value::Number(_) => Ok(()),
        _ => Err(format!("`{name}`: an extension attribute is a string, a boolean or a number")),
    }
}

/// A place in the stream of events: the id of a stored event, ordered as the stream is.
///
/// Redis gives its stream entry ids (milliseconds, number); the memory broker makes ids of the
/// same form, so that a client resumes from either in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Milliseconds since the epoch.
    pub millis: u64,
    /// Number within the millisecond.
    pub number: u64,
}

impl Position {
    /// Before every event.
    pub const START: Self = Self { millis: 0, number: 0 };

    /// The place just before this one.
    #[must_use]
    pub fn before(self) -> Self {
        match self {
            Self { millis, number: number @ 1.. } => Self { millis, number: number - 1 },
            Self { millis: 0, .. } => Self::START,
            Self { millis, .. } => Self { millis: millis - 1, number: u64::MAX },
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.number)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits =
            |part: &str| part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok());
        text.split_once('-')
            .and_then(|(millis, number)| {
                Some(Self { millis: digits(millis)??, number: digits(number)?? })
            })
            .ok_or_else(|| format!("{text:?} is not the id of an event, such as 1767225600000-0"))
    }
}

/// An event as the broker keeps it. The JSON is shared, because one event goes to many readers.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its place.
    pub position: Position,
    /// Its JSON, as it was published.
    pub json: std::sync::Arc<str>,
}

/// The part of the stream that can still be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Every event after this place can still be read; events at or before it may be gone.
    pub complete_after: Position,
    /// The newest event, or the place after which the next one comes.
    pub newest: Position,
}

impl Range {
    /// True when a reader who has seen everything up to `position` can go on without loss.
    #[must_use]
    pub fn can_resume_after(&self, position: Position) -> bool {
        (self.complete_after..=self.newest).contains(&position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_survives_its_json() {
        let text = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a.b",
            "subject": "s", "time": "2026-01-01T00:00:00Z", "data": {"n": 1}, "traceparent": "00"});
        let event = Event::from_json(text.clone()).unwrap();
        assert_eq!(event.extensions["traceparent"], "00");
        assert_eq!(serde_json::from_str::<Value>(&event.to_json()).unwrap(), text);
    }

    #[test]
    fn an_event_that_breaks_the_specification_is_refused() {
        let good = json!({"specversion": "1.0", "id": "1", "source": "/x", "type": "a"});
        assert!(Event::from_json(good.clone()).is_ok());
        for (key, value) in [
            ("specversion", json!("0.3")),
            ("id", json!("")),
            ("type", json!("a\nb")),
            ("time", json!("yesterday")),
            ("BadName", json!("x")),
            ("nested", json!({})),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(Event::from_json(bad).is_err(), "{key} was accepted");
        }
    }

    #[test]
    fn positions_are_ordered_as_numbers_and_survive_their_text() {
        let small: Position = "9-10".parse().unwrap();
        let large: Position = "10-9".parse().unwrap();
        assert!(small < large);
        assert_eq!(large.to_string(), "10-9");
        for bad in ["", "1", "a-1", "1-", "-1", "1-+2", "99999999999999999999-0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_place_before_another_is_its_neighbour() {
        let place = |text: &str| text.parse::<Position>().unwrap();
        assert_eq!(place("5-7").before(), place("5-6"));
        assert_eq!(place("5-0").before(), Position { millis: 4, number: u64::MAX });
        assert_eq!(Position::START.before(), Position::START);
    }
}
