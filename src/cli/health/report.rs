//! The report of `/health`, as a person reads it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cli::screen::{Cell, Screen, Tone, table};

/// The fields that are shown. Other versions may send more, or fewer.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    pub(super) status: String,
    version: String,
    instance: String,
    connections: Connections,
    outbox: Option<BTreeMap<String, Waiting>>,
}

#[derive(Debug, Deserialize)]
struct Connections {
    environment: String,
    services: BTreeMap<String, String>,
    #[serde(default)]
    details: BTreeMap<String, Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    backend: String,
    circuit: String,
    pool: Option<Pool>,
    probe: Option<Probe>,
    last_error: Option<LastError>,
}

#[derive(Debug, Deserialize)]
struct Pool {
    max: u64,
    in_use: u64,
}

#[derive(Debug, Deserialize)]
struct Probe {
    ok: bool,
    age_seconds: f64,
    latency_ms: f64,
}

#[derive(Debug, Deserialize)]
struct LastError {
    class: String,
}

#[derive(Debug, Deserialize)]
struct Waiting {
    rows: i64,
    oldest_seconds: Option<f64>,
    dead_letters: i64,
    /// Absent from a service of an earlier release.
    #[serde(default)]
    accepted_per_second: f64,
    #[serde(default)]
    delivered_per_second: f64,
    late_since: Option<String>,
}

fn tone(state: &str) -> Tone {
    match state {
        "healthy" | "initialized" | "closed" => Tone::Good,
        "unavailable" | "unhealthy" | "stalled" | "open" => Tone::Bad,
        "not_initialized" => Tone::Faint,
        _ => Tone::Warning,
    }
}

impl Report {
    /// The whole report. `with_key` tells whether a key was sent, which should bring the details.
    pub(super) fn text(&self, screen: Screen, with_key: bool) -> String {
        let Self { status, version, instance, connections, .. } = self;
        let status = screen.paint(tone(status), status);
        let about =
            format!("agentarea-api {version}, {}, instance {instance}", connections.environment);
        let mut text = format!("{status}  {}\n\n", screen.paint(Tone::Faint, &about));
        if connections.details.is_empty() {
            text += &self.in_short(screen);
            text += if with_key {
                "\nno details: the key is unknown, or lacks the scope `read`\n"
            } else {
                "\ndetails are for callers with the scope `read`: see --key-file\n"
            };
        } else {
            text += &self.in_columns(screen);
        }
        text += &self.waiting();
        text
    }

    fn in_short(&self, screen: Screen) -> String {
        let rows = self.connections.services.iter();
        let rows = rows.map(|(name, state)| [name.clone().into(), Cell::new(tone(state), state)]);
        table(screen, ["CONNECTION", "STATE"], None, rows.collect())
    }

    fn in_columns(&self, screen: Screen) -> String {
        let rows = self.connections.services.iter().map(|(name, state)| {
            let mut row: [Cell; 7] = Default::default();
            row[0] = name.clone().into();
            row[1] = Cell::new(tone(state), state);
            if let Some(details) = self.connections.details.get(name) {
                let pool = |pool: &Pool| format!("{} of {}", pool.in_use, pool.max);
                row[2] = details.backend.clone().into();
                row[3] = Cell::new(tone(&details.circuit), &details.circuit);
                row[4] = details.pool.as_ref().map(pool).unwrap_or_default().into();
                row[5] = details.probe.as_ref().map(Probe::cell).unwrap_or_default();
                row[6] = details.last_error.as_ref().map_or("", |error| &error.class).into();
            }
            row
        });
        let head = ["CONNECTION", "STATE", "BACKEND", "CIRCUIT", "POOL", "PROBE", "LAST ERROR"];
        table(screen, head, None, rows.collect())
    }

    fn waiting(&self) -> String {
        let Some(outbox) = &self.outbox else { return String::new() };
        let lines = outbox.iter().map(|(destination, waiting)| {
            let Waiting { rows, oldest_seconds, dead_letters, .. } = waiting;
            let age = oldest_seconds.map_or_else(String::new, |s| format!(" for {s:.0} s"));
            let late = waiting.late_since.as_ref();
            let late = late.map_or_else(String::new, |at| format!(", late since {at}"));
            let (accepted, delivered) = (waiting.accepted_per_second, waiting.delivered_per_second);
            format!(
                "\n{rows} waiting{age} for {destination}, {accepted:.1}/s in, {delivered:.1}/s out\
                 {late}, {dead_letters} dead letters"
            )
        });
        lines.collect::<Vec<_>>().concat() + "\n"
    }

    /// One line that changes only when a state changes, not with each measurement.
    pub(super) fn line(&self) -> String {
        let states = self.connections.services.iter().map(|(name, state)| {
            let details = self.connections.details.get(name);
            let class = details
                .filter(|_| state != "initialized")
                .and_then(|details| details.last_error.as_ref())
                .map_or_else(String::new, |error| format!(" ({})", error.class));
            let circuit = details
                .filter(|details| details.circuit != "closed")
                .map_or_else(String::new, |details| format!(" circuit {}", details.circuit));
            format!("{name} {state}{class}{circuit}")
        });
        format!("{}: {}", self.status, states.collect::<Vec<_>>().join(", "))
    }
}

impl Probe {
    fn cell(&self) -> Cell {
        let Self { ok, age_seconds, latency_ms } = self;
        let (tone, word) = if *ok { (Tone::Good, "ok") } else { (Tone::Bad, "failed") };
        Cell::new(tone, format!("{word} in {latency_ms:.1} ms, {age_seconds:.0} s ago"))
    }
}
