//! The newest events in memory, bounded in events and bytes, for followers to read at their own pace.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    config::EventStream as Config,
    model::events::{Position, StoredEvent},
};

/// The bytes that a follower receives at once, so that one far behind gets them in steps.
const CHUNK: usize = 64 << 10;

/// An event with the attributes by which followers choose.
#[derive(Debug)]
pub struct Streamed {
    /// The event as the broker keeps it.
    pub event: StoredEvent,
    kind: String,
    subject: Option<String>,
}

impl Streamed {
    pub(super) fn new(event: StoredEvent) -> Self {
        #[derive(Default, serde::Deserialize)]
        struct Attributes {
            #[serde(default, rename = "type")]
            kind: String,
            subject: Option<String>,
        }
        let Attributes { kind, subject } = serde_json::from_str(&event.json).unwrap_or_default();
        Self { event, kind, subject }
    }
}

/// Selects the events that a follower wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    kind: Option<String>,
    subject: Option<String>,
}

impl Filter {
    /// `kind` is a type, or a prefix of types followed by `*`.
    #[must_use]
    pub fn new(kind: Option<String>, subject: Option<String>) -> Self {
        Self { kind, subject }
    }

    pub(super) fn admits(&self, event: &Streamed) -> bool {
        let kind_fits = self.kind.as_deref().is_none_or(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => event.kind.starts_with(prefix),
            None => event.kind == wanted,
        });
        kind_fits && (self.subject.is_none() || self.subject == event.subject)
    }
}

#[derive(Debug, Default)]
pub(super) struct Ring {
    events: VecDeque<Arc<Streamed>>,
    bytes: usize,
    complete_after: Position,
    /// Counts the restarts.
    generation: u64,
    followers: usize,
    /// True while the upstream is read, or must be.
    is_open: bool,
}

/// The result of a follower's search in the ring.
pub(super) enum Found {
    /// Events, and the place up to which the ring was searched.
    Events(Vec<Arc<Streamed>>, Position),
    /// The ring begins only after this place.
    Behind(Position),
    /// The broker lost events, and the ring begins after this place.
    Lost(Position),
}

impl Ring {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn complete_after(&self) -> Position {
        self.complete_after
    }

    /// Takes one of `places`. False when all of them are taken.
    pub(super) fn take_place(&mut self, places: usize) -> bool {
        let is_free = self.followers < places;
        self.followers += usize::from(is_free);
        is_free
    }

    pub(super) fn give_place_back(&mut self) {
        self.followers -= 1;
    }

    /// Opens the ring after `newest` unless it is open already. True when it was not.
    pub(super) fn open(&mut self, newest: Position) -> bool {
        let opens = !std::mem::replace(&mut self.is_open, true);
        if opens {
            self.restart(newest);
        }
        opens
    }

    /// True while there are followers; otherwise closes the ring.
    pub(super) fn is_wanted(&mut self) -> bool {
        self.is_open = self.followers > 0;
        self.is_open
    }

    /// The place up to which the upstream was read, if it is open.
    pub(super) fn read_to(&self) -> Option<Position> {
        let last = self.events.back().map(|event| event.event.position);
        self.is_open.then(|| last.unwrap_or(self.complete_after))
    }

    /// Restarts at `at`, which leaves a gap for followers of the previous events.
    pub(super) fn restart(&mut self, at: Position) {
        self.generation += 1;
        self.events.clear();
        self.bytes = 0;
        self.complete_after = at;
    }

    pub(super) fn append(&mut self, events: Vec<Arc<Streamed>>, config: &Config) {
        for event in events {
            self.bytes += event.event.json.len();
            self.events.push_back(event);
        }
        while self.events.len() > config.buffer_events || self.bytes > config.buffer_bytes.0 {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= dropped.event.json.len();
            self.complete_after = dropped.event.position;
        }
    }

    /// Events after `at` for a follower that subscribed in `generation`.
    pub(super) fn find(&self, generation: u64, mut at: Position, filter: &Filter) -> Found {
        if generation != self.generation {
            return Found::Lost(self.complete_after);
        }
        if at < self.complete_after {
            return Found::Behind(self.complete_after);
        }
        let from = self.events.partition_point(|event| event.event.position <= at);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for event in self.events.range(from..) {
            at = event.event.position;
            if filter.admits(event) {
                bytes += event.event.json.len();
                found.push(Arc::clone(event));
                if bytes >= CHUNK {
                    break;
                }
            }
        }
        Found::Events(found, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_admit_exact_types_and_prefixes() {
        let event = |kind: &str, subject: Option<&str>| {
            let json = serde_json::json!({"type": kind, "subject": subject}).to_string().into();
            Streamed::new(StoredEvent { position: Position::START, json })
        };
        let filter = |kind: &str| Filter::new(Some(kind.to_owned()), None);
        assert!(filter("task.created").admits(&event("task.created", None)));
        assert!(!filter("task.created").admits(&event("task.created.x", None)));
        assert!(filter("task.*").admits(&event("task.created", None)));
        assert!(!filter("task.*").admits(&event("tasks", None)));
        assert!(filter("*").admits(&event("anything", None)));
        let of_subject = Filter::new(None, Some("a".to_owned()));
        assert!(of_subject.admits(&event("x", Some("a"))));
        assert!(!of_subject.admits(&event("x", None)));
    }
}
