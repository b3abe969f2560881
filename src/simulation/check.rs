//! What must be true after a run.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    clients::{Accepted, SOURCE},
    fleet::Fleet,
    world::{ECHO, ExecutionRow, State, Truth, UNREADABLE, World},
};
use crate::model::{events::DEFAULT_SOURCE, executions::Status};

/// What has not left yet.
fn left_behind(truth: &Truth) -> Vec<String> {
    let events = truth.pending.iter().map(|seq| format!("event {}", truth.outbox[seq].event.id));
    let open = truth.executions.values().filter(|row| !row.execution.status.is_terminal());
    let open = open.map(|row| format!("execution {} {}", row.execution.id, row.execution.status));
    events.chain(open).collect()
}

/// Waits until all that was accepted has left.
pub(super) async fn all_leaves(world: &World, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let left = left_behind(&world.truth.lock());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "it does not move: {left:#?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Every pooled connection was given back, and none was missed.
pub(super) fn nothing_is_held(world: &World, fleet: &Fleet) {
    let starved = &world.truth.lock().starved;
    assert!(starved.is_empty(), "no connection was free for {starved:?}");
    for member in fleet.members.iter().filter(|member| member.is_alive()) {
        for (size, pool) in &member.pools {
            assert_eq!(pool.available_permits(), *size, "connections are held");
        }
    }
}

/// Nothing is lost, everything was started once, and order was kept.
pub(super) fn promises_are_kept(world: &World, accepted: &Accepted) {
    let truth = world.truth.lock();
    let delivered = Delivered::of(&truth);
    for ids in accepted.events.values() {
        let dead = truth.outbox.values().filter(|row| row.state == State::Dead);
        let dead: Vec<&str> = dead.map(|row| row.event.id.as_str()).collect();
        let expected = ids.iter().filter(|id| !dead.contains(&id.as_str()));
        let places: Vec<usize> = expected.map(|id| delivered.place(SOURCE, id)).collect();
        assert!(places.is_sorted(), "events out of order: {ids:?} at {places:?}");
    }
    for id in &accepted.executions {
        let row = truth.executions.get(id).unwrap_or_else(|| panic!("execution {id} is lost"));
        ran_once(&truth, row, accepted.cancelled.contains(id));
        was_announced(&delivered, row);
    }
}

fn ran_once(truth: &Truth, row: &ExecutionRow, cancelled: bool) {
    let execution = &row.execution;
    let id = &execution.id;
    let run = truth.runs.get(id);
    if let Some(run) = run {
        assert_eq!(run.request_id, execution.request_id, "another execution {id} ran");
    }
    match execution.workflow.as_str() {
        ECHO if cancelled => {
            let ended = matches!(execution.status, Status::Completed | Status::Cancelled);
            assert!(ended, "execution {id} is {}", execution.status);
        }
        ECHO => {
            assert!(run.is_some(), "execution {id} was not started");
            assert_eq!(execution.status, Status::Completed, "execution {id}");
        }
        // The process that accepted it has it in memory, and needs not read it.
        UNREADABLE if run.is_some() => {}
        _ => assert!(run.is_none() && row.is_rejected, "execution {id} is no dead letter"),
    }
}

/// `accepted` before `running` before the end.
fn was_announced(delivered: &Delivered<'_>, row: &ExecutionRow) {
    let execution = &row.execution;
    let place = |status: Status| {
        let source = DEFAULT_SOURCE;
        delivered.first.get(&(source, &*format!("{}:{status}", execution.id))).copied()
    };
    let (accepted, running, ended) =
        (place(Status::Accepted), place(Status::Running), place(execution.status));
    let id = &execution.id;
    assert!(accepted.is_some() && ended.is_some(), "execution {id}: {accepted:?}, {ended:?}");
    let places: Vec<_> = [accepted, running, ended].into_iter().flatten().collect();
    assert!(places.is_sorted(), "execution {id} was announced in the order {places:?}");
}

/// The places at which the broker has events first: an event may be there twice.
struct Delivered<'a> {
    first: BTreeMap<(&'a str, &'a str), usize>,
}

impl<'a> Delivered<'a> {
    fn of(truth: &'a Truth) -> Self {
        let mut first = BTreeMap::new();
        for (place, event) in truth.stream.iter().enumerate() {
            first.entry((event.source.as_str(), event.id.as_str())).or_insert(place);
        }
        Self { first }
    }

    fn place(&self, source: &str, id: &str) -> usize {
        *self.first.get(&(source, id)).unwrap_or_else(|| panic!("event {id} is lost"))
    }
}
