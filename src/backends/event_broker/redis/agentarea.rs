//! What `AgentArea`'s own services read: events as messages of their broker library, on
//! channels.

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};

use crate::model::{events::Event, time};

/// Appends all events, then tells `AgentArea`'s subscribers. A `PUBLISH` that fails (its channel can
/// be forbidden) does not undo what is stored.
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
/// Written from the event as it lies: a copy of its data takes many times the memory of its text.
///
/// # Panics
/// Never: every part of an event is representable in JSON.
pub(super) fn envelope(event: &Event) -> String {
    let happened = event.time.as_ref().and_then(|time| time.parse().ok());
    let happened: time::Timestamp = happened.unwrap_or_else(time::now);
    let inner = Inner {
        event_id: &event.id,
        timestamp: happened.as_duration().as_secs_f64().to_string(),
        event_type: &event.kind,
        data: Data(event),
    };
    let headers = json!({"correlation_id": event.id, "content-type": "application/json"});
    let inner = serde_json::to_string(&inner).expect("strings and JSON values serialise");
    json!({"data": inner, "headers": headers}).to_string()
}

#[derive(Serialize)]
struct Inner<'a> {
    event_id: &'a str,
    timestamp: String,
    event_type: &'a str,
    data: Data<'a>,
}

/// An event's data as an object, whatever it is, with the event's subject.
struct Data<'a>(&'a Event);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const AGGREGATE: &str = "aggregate_id";
        let Event { data, data_base64, subject, .. } = self.0;
        let mut map = serializer.serialize_map(None)?;
        let mut subject = subject.as_ref();
        match (data, data_base64) {
            (Some(Value::Object(members)), _) => {
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                // What the sender said stays.
                subject = subject.filter(|_| !members.contains_key(AGGREGATE));
            }
            (Some(value), _) => map.serialize_entry("value", value)?,
            (None, Some(text)) => map.serialize_entry("data_base64", text)?,
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
    use super::*;

    fn inner(event: &Event) -> Value {
        let outer: Value = serde_json::from_str(&envelope(event)).unwrap();
        assert_eq!(outer["headers"]["correlation_id"], event.id.as_str());
        assert_eq!(outer["headers"]["content-type"], "application/json");
        serde_json::from_str(outer["data"].as_str().expect("data is a string of JSON")).unwrap()
    }

    #[test]
    fn the_envelope_is_what_agentarea_reads() {
        let subject = Some("task-1".to_owned());
        let mut event = Event::new("workflow.WorkflowStarted", subject, Some(json!({"n": 1})));
        event.time = Some("2026-01-01T00:00:00.25Z".to_owned());
        assert_eq!(
            inner(&event),
            json!({
                "event_id": event.id,
                "timestamp": "1767225600.25",
                "event_type": "workflow.WorkflowStarted",
                "data": {"n": 1, "aggregate_id": "task-1"},
            })
        );
    }

    #[test]
    fn data_is_always_an_object() {
        let data = |data| inner(&Event::new("a", None, data))["data"].clone();
        assert_eq!(data(None), json!({}));
        assert_eq!(data(Some(json!([1]))), json!({"value": [1]}));
        let own = json!({"aggregate_id": "mine"});
        let event = Event::new("a", Some("subject".to_owned()), Some(own.clone()));
        assert_eq!(inner(&event)["data"], own, "what the sender said stays");
        let mut binary = Event::new("a", None, None);
        binary.data_base64 = Some("AA==".to_owned());
        assert_eq!(inner(&binary)["data"], json!({"data_base64": "AA=="}));
    }
}
