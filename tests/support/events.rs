//! A client of the event stream.

use reqwest::Response;
use serde_json::Value;

use super::{DEADLINE, Service};

impl Service {
    /// Follows the event stream.
    pub(crate) async fn follow(&self, query: &str, last_event_id: Option<&str>) -> Events {
        let mut request = self.get(&format!("/v1/events/stream{query}"));
        if let Some(id) = last_event_id {
            request = request.header("Last-Event-ID", id);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        Events { response, buffer: String::new() }
    }
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sent {
    pub(crate) name: Option<String>,
    pub(crate) id: Option<String>,
    /// The data as it was sent, and what it says.
    pub(crate) text: String,
    pub(crate) data: Value,
}

/// A client of the event stream.
pub(crate) struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    /// The next event; `None` when the stream has ended.
    pub(crate) async fn try_next(&mut self) -> Option<Sent> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                if let Some(sent) = parse(&block) {
                    return Some(sent);
                }
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk()).await;
            let chunk = chunk.expect("the stream says something in time").ok()??;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    pub(crate) async fn next(&mut self) -> Sent {
        self.try_next().await.expect("the stream goes on")
    }

    /// The next `count` events' ids (of the events, not of the stream).
    pub(crate) async fn ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.next().await.data["id"].as_str().unwrap().to_owned());
        }
        ids
    }
}

fn parse(block: &str) -> Option<Sent> {
    let (mut name, mut id, mut text) = (None, None, Vec::new());
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("event", value)) => name = Some(value.to_owned()),
            Some(("id", value)) => id = Some(value.to_owned()),
            Some(("data", value)) => text.push(value),
            _ => {}
        }
    }
    let text = text.join("\n");
    (!text.is_empty()).then(|| Sent { name, id, data: serde_json::from_str(&text).unwrap(), text })
}
