//! What is true in a simulation: what is stored, what the broker and the service have, and which
//! faults there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::model::{
    events::{Event, Position},
    executions::{Ending, Execution, Outcome},
    json::Fingerprint,
    lanes::Lanes,
    simulated,
    time::Timestamp,
};

/// The workflow of an execution that can run.
pub(super) const ECHO: &str = "echo";
/// The type of an event, or the workflow of an execution, that cannot be read once it is stored.
pub(super) const UNREADABLE: &str = "unreadable";
/// The type of an event, or the workflow of an execution, that the broker or the service refuses.
pub(super) const REFUSED: &str = "refused";

/// The time after the last fault within which nobody waits for a connection because of it.
const SETTLED: Duration = Duration::from_secs(5);

/// What is shared by all replicas.
#[derive(Debug)]
pub(super) struct World {
    pub(super) truth: Mutex<Truth>,
    random: Mutex<StdRng>,
    trace: Mutex<Vec<String>>,
    begin: Instant,
    began_at: Timestamp,
    /// Shows what happens at once.
    is_shown: bool,
}

/// Everything that is stored, wherever.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) outbox: BTreeMap<i64, OutboxRow>,
    /// The sources and ids in it.
    pub(super) names: BTreeSet<(String, String)>,
    /// The numbers of its waiting rows.
    pub(super) pending: BTreeSet<i64>,
    pub(super) lanes: Vec<LaneRow>,
    pub(super) relays: BTreeMap<String, Instant>,
    pub(super) executions: BTreeMap<String, ExecutionRow>,
    pub(super) keys: BTreeMap<(String, String), (Fingerprint, String)>,
    pub(super) roles: BTreeMap<String, (String, Instant)>,
    /// The broker's stream.
    pub(super) stream: Vec<Event>,
    /// The execution service's runs.
    pub(super) runs: BTreeMap<String, RunRow>,
    pub(super) faults: Faults,
    /// Set when all faults are over.
    pub(super) recovered: Option<Instant>,
    /// Calls that found no connection in time although nothing was slow.
    pub(super) starved: Vec<String>,
}

#[derive(Debug)]
pub(super) struct OutboxRow {
    pub(super) lane: i32,
    pub(super) event: Event,
    pub(super) state: State,
    pub(super) refusals: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    Delivered(Position),
    Dead,
}

#[derive(Clone, Debug)]
pub(super) struct LaneRow {
    pub(super) owner: String,
    pub(super) until: Instant,
    pub(super) fence: i64,
}

#[derive(Debug)]
pub(super) struct ExecutionRow {
    pub(super) execution: Execution,
    pub(super) claimed_until: Instant,
    pub(super) fence: i64,
    pub(super) tried_at: Option<Instant>,
    pub(super) refusals: i32,
    pub(super) ending: Option<Ending>,
    pub(super) is_rejected: bool,
}

impl ExecutionRow {
    pub(super) fn is_unreadable(&self) -> bool {
        self.execution.workflow == UNREADABLE
    }
}

#[derive(Debug)]
pub(super) struct RunRow {
    pub(super) request_id: String,
    pub(super) started_at: Timestamp,
    pub(super) ends: Instant,
    pub(super) outcome: Option<Outcome>,
}

/// The faults that there are now; none is left when they end.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) down: BTreeMap<Peer, Instant>,
    pub(super) slow: BTreeMap<Peer, (Instant, Duration)>,
    pub(super) throttled: Option<Instant>,
    /// The share of answers that are lost.
    pub(super) lost_answers: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    Database,
    Broker,
    Service,
}

impl World {
    pub(super) fn new(seed: u64, is_shown: bool) -> Arc<Self> {
        let began_at = "2026-01-01T00:00:00Z".parse().expect("a time");
        simulated::begin(seed, began_at);
        let free = LaneRow { owner: String::new(), until: Instant::now(), fence: 0 };
        let lanes = (0..Lanes::SIXTEEN.number()).map(|_| free.clone()).collect();
        let truth = Truth { lanes, ..Truth::default() };
        Arc::new(Self {
            truth: Mutex::new(truth),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            trace: Mutex::default(),
            begin: Instant::now(),
            began_at,
            is_shown,
        })
    }

    /// The clock of the database.
    pub(super) fn now(&self) -> Timestamp {
        self.began_at + self.begin.elapsed()
    }

    pub(super) fn random<T>(&self, choose: impl FnOnce(&mut StdRng) -> T) -> T {
        choose(&mut self.random.lock())
    }

    /// Adds to what happened.
    pub(super) fn note(&self, what: &str) {
        let line = format!("{:?} {what}", self.begin.elapsed());
        if self.is_shown {
            eprintln!("{line}");
        }
        self.trace.lock().push(line);
    }

    /// Notes that no connection was free for a call.
    pub(super) fn starved(&self, replica: &str, name: &str) {
        self.note(&format!("{replica} {name} finds no connection"));
        let mut truth = self.truth.lock();
        if truth.recovered.is_some_and(|at| at.elapsed() > SETTLED) {
            truth.starved.push(format!("{replica} {name}"));
        }
    }

    pub(super) fn trace(&self) -> Vec<String> {
        std::mem::take(&mut self.trace.lock())
    }
}
