//! Server-sent events: the text in which followers receive the stream.

use std::fmt::Write;

use bytes::Bytes;

use crate::{
    model::events::Position,
    services::events::stream::{Gap, Next},
};

/// Sent first, because some proxies do not forward headers alone, but do forward a comment.
pub(super) const SUBSCRIBED: Bytes = Bytes::from_static(b": subscribed\n\n");
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Tells browsers to reconnect soon, to another instance.
const COME_BACK: Bytes = Bytes::from_static(b"retry: 1000\n\n");

/// The text of a follower's next message.
pub(super) fn text(next: &Next) -> Bytes {
    match next {
        Next::Events(events) => {
            let lengths = events.iter().map(|event| event.event.json.len() + 48);
            let mut text = String::with_capacity(lengths.sum());
            for event in events {
                message(&mut text, Field::Id(event.event.position), &event.event.json);
            }
            text.into()
        }
        Next::Missed { gap, after, resumes_after } => {
            let data = serde_json::json!({
                "reason": reason(*gap),
                "last_event_id": after.to_string(),
                "resumes_after": resumes_after.to_string(),
            });
            let mut text = String::new();
            message(&mut text, Field::Event("gap"), &data.to_string());
            text.into()
        }
        Next::Quiet => KEEP_ALIVE,
        Next::Stopping => COME_BACK,
    }
}

fn reason(gap: Gap) -> &'static str {
    match gap {
        Gap::Expired => "expired",
        Gap::Unknown => "unknown",
        Gap::Slow => "slow",
    }
}

/// The line before the data.
#[derive(Clone, Copy)]
enum Field {
    /// The type of the message.
    Event(&'static str),
    /// The position after which a client resumes.
    Id(Position),
}

fn message(text: &mut String, field: Field, data: &str) {
    // Writing to a string cannot fail.
    let _written = match field {
        Field::Event(name) => writeln!(text, "event: {name}"),
        Field::Id(position) => writeln!(text, "id: {position}"),
    };
    // Either character ends a line; the client sees a line feed between two lines of data.
    for line in data.split(['\n', '\r']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_with_line_breaks_stays_one_message() {
        let mut text = String::new();
        message(&mut text, Field::Id(Position { millis: 1, number: 2 }), "a\nb\rc");
        assert_eq!(text, "id: 1-2\ndata: a\ndata: b\ndata: c\n\n");
    }

    #[test]
    fn a_gap_says_where_to_go_on() {
        let at = |millis| Position { millis, number: 0 };
        let next = Next::Missed { gap: Gap::Slow, after: at(1), resumes_after: at(5) };
        let expected = "event: gap\ndata: \
             {\"last_event_id\":\"1-0\",\"reason\":\"slow\",\"resumes_after\":\"5-0\"}\n\n";
        assert_eq!(text(&next), expected);
    }
}
