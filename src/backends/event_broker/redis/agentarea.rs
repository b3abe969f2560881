//! The format that `AgentArea`'s own services read: events as messages of their broker library, on
//! channels.

use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};
use serde_json::json;

use crate::{
    error::{Error, ErrorKind},
    model::{
        events::Event,
        json::Members,
        time::{self, Timestamp},
    },
};

/// Appends all events, then notifies `AgentArea`'s subscribers. A `PUBLISH` that fails (its channel
/// can be forbidden) does not undo what is stored.
pub(super) const APPEND_AND_PUBLISH: &str = "\
local places = {}
for i = 2, #ARGV, 3 do
    local place = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'event', ARGV[i])
    table.insert(places, place)
end
for i = 2, #ARGV, 3 do
    redis.pcall('PUBLISH', ARGV[i + 1], ARGV[i + 2])
end
return places";

/// `FastStream`'s message around `AgentArea`'s event.
///
/// Written directly from the event's text, because a parsed copy of its data takes many times the
/// memory.
///
/// # Errors
/// When the event is not JSON. Every accepted event is.
pub(super) fn envelope(event: &Event) -> Result<String, Error> {
    let unreadable =
        |error| Error::new(ErrorKind::Incompatible, "the event cannot be read").with_source(error);
    let members = Members::of(event.document()).map_err(unreadable)?;
    let happened = members.get("time").and_then(|time| serde_json::from_str(time).ok());
    let happened: Timestamp = happened.unwrap_or_else(time::now);
    let inner = Inner {
        event_id: &event.id,
        timestamp: happened.as_duration().as_secs_f64().to_string(),
        event_type: &event.kind,
        data: Data { members: &members, subject: event.subject.as_deref() },
    };
    let headers = json!({"correlation_id": event.id, "content-type": "application/json"});
    let inner = serde_json::to_string(&inner).map_err(unreadable)?;
    Ok(json!({"data": inner, "headers": headers}).to_string())
}

#[derive(Serialize)]
struct Inner<'a> {
    event_id: &'a str,
    timestamp: String,
    event_type: &'a str,
    data: Data<'a>,
}

/// An event's data as an object, whatever its type, with the event's subject.
struct Data<'a> {
    members: &'a Members<'a>,
    subject: Option<&'a str>,
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const AGGREGATE: &str = "aggregate_id";
        let mut map = serializer.serialize_map(None)?;
        let mut subject = self.subject;
        let binary = self.members.value("data_base64").filter(|binary| binary.get() != "null");
        match (self.members.value("data"), binary) {
            (Some(data), _) if data.get().starts_with('{') => {
                let data = Members::of(data.get()).map_err(S::Error::custom)?;
                for (name, value) in data.iter() {
                    map.serialize_entry(name, value)?;
                }
                // A value from the sender takes precedence.
                subject = subject.filter(|_| data.get(AGGREGATE).is_none());
            }
            (_, Some(binary)) => map.serialize_entry("data_base64", binary)?,
            (Some(value), None) => map.serialize_entry("value", value)?,
            (None, None) => {}
        }
        if let Some(subject) = subject {
            map.serialize_entry(AGGREGATE, subject)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::json::Json;

    /// Returns the envelope of an event that has more than the required attributes.
    fn inner(mut more: Value) -> Value {
        let mut event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "a.b"});
        event.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
        let event = Event::from_client(&Json::from(event)).unwrap();
        let outer: Value = serde_json::from_str(&envelope(&event).unwrap()).unwrap();
        assert_eq!(outer["headers"]["correlation_id"], "1");
        assert_eq!(outer["headers"]["content-type"], "application/json");
        serde_json::from_str(outer["data"].as_str().expect("data is a string of JSON")).unwrap()
    }

    #[test]
    fn the_envelope_is_what_agentarea_reads() {
        let event = json!({
            "subject": "task-1", "time": "2026-01-01T00:00:00.25Z", "data": {"n": 1},
        });
        assert_eq!(
            inner(event),
            json!({
                "event_id": "1",
                "timestamp": "1767225600.25",
                "event_type": "a.b",
                "data": {"n": 1, "aggregate_id": "task-1"},
            })
        );
    }

    #[test]
    fn data_is_always_an_object() {
        assert_eq!(inner(json!({}))["data"], json!({}));
        assert_eq!(inner(json!({"data": [1]}))["data"], json!({"value": [1]}));
        assert_eq!(inner(json!({"data": null}))["data"], json!({"value": null}));
        let own = json!({"aggregate_id": "mine"});
        let data = &inner(json!({"subject": "subject", "data": own}))["data"];
        assert_eq!(*data, own, "what the sender said stays");
        assert_eq!(inner(json!({"data_base64": "AA=="}))["data"], json!({"data_base64": "AA=="}));
    }

    #[test]
    fn the_data_s_text_is_the_client_s() {
        let event = r#"{"specversion":"1.0","id":"1","source":"s","type":"a",
            "data":{"b":1.00,"a":[12345678901234567890123, 1e2]}}"#;
        let event = Event::from_client(&Json::read(event.as_bytes()).unwrap()).unwrap();
        let outer: Value = serde_json::from_str(&envelope(&event).unwrap()).unwrap();
        let data = r#""data":{"b":1.00,"a":[12345678901234567890123, 1e2]}"#;
        assert!(outer["data"].as_str().unwrap().contains(data), "{outer}");
    }
}
