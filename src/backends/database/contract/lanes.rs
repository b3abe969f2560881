//! The lanes of the outbox, their number, and the previous program beside this one.

use std::{collections::BTreeMap, time::Duration};

use super::{
    super::{Database, Lane, NewEvent},
    MINUTE, claim, new_event,
    outbox::{pending, placed},
    store,
};
use crate::model::{ids, lanes::Lanes};

const OWNERS: [&str; 2] = ["one", "two"];

fn number(lanes: i32) -> Lanes {
    Lanes::new(lanes).expect("a number of lanes")
}

async fn want(database: &dyn Database, lanes: i32) -> i32 {
    database.want_lanes(number(lanes)).await.expect("the database answers").number()
}

/// Events of a few subjects, in the order of their acceptance.
struct Ledger {
    subjects: Vec<String>,
    accepted: BTreeMap<String, Vec<String>>,
    delivered: BTreeMap<String, Vec<String>>,
}

impl Ledger {
    fn new() -> Self {
        let subjects = (0..40).map(|_| ids::new_id()).collect();
        Self { subjects, accepted: BTreeMap::new(), delivered: BTreeMap::new() }
    }

    async fn accept(&mut self, database: &dyn Database) {
        let events: Vec<NewEvent> = self.subjects.iter().map(|name| new_event(name)).collect();
        for (subject, new) in self.subjects.iter().zip(&events) {
            self.accepted.entry(subject.clone()).or_default().push(new.event.id.clone());
        }
        store(database, &events).await;
    }

    /// Delivers at most `limit` of the events that wait in these lanes.
    async fn deliver(&mut self, database: &dyn Database, owner: &str, held: &[Lane], limit: i64) {
        let waiting = database.pending_events(held, limit, i64::MAX).await.expect("they are read");
        for waiting in &waiting.readable {
            let lane = held.iter().find(|lane| lane.number == waiting.lane).expect("it is held");
            assert_eq!(lane.of.lane_of(waiting.event.slot()), lane.number);
            let subject = waiting.event.subject.clone().expect("it has one");
            self.delivered.entry(subject).or_default().push(waiting.event.id.clone());
        }
        let places = placed(&waiting.readable);
        let marked = database.mark_delivered(owner, held, &places).await.expect("no error");
        assert_eq!(marked, places.len(), "the lanes are held");
    }

    fn check(&self) {
        assert_eq!(self.accepted, self.delivered, "each subject is in order and complete");
    }
}

/// Claims as often as the two need to agree. Returns the lanes of each.
async fn settle(database: &dyn Database) -> [Vec<Lane>; 2] {
    for _ in 0..3 {
        for owner in OWNERS {
            claim(database, owner, MINUTE).await;
        }
    }
    [claim(database, OWNERS[0], MINUTE).await, claim(database, OWNERS[1], MINUTE).await]
}

pub(super) async fn suite(database: &dyn Database) {
    deliver_earlier_events(database).await;
    the_number_of_lanes_changes_and_each_subject_keeps_its_order(database).await;
    nobody_is_idle_while_there_are_lanes(database).await;
}

/// Earlier events of the suite do not matter here.
async fn deliver_earlier_events(database: &dyn Database) {
    database.forget_processes(Duration::ZERO).await.expect("the database answers");
    let held = claim(database, "one", MINUTE).await;
    let places = placed(&pending(database, &held).await);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
}

async fn the_number_of_lanes_changes_and_each_subject_keeps_its_order(database: &dyn Database) {
    let alone = database.serves_one_process();
    let mut ledger = Ledger::new();
    let mut before = 16;
    for (round, lanes) in [64, 16, 256, 128, 16].into_iter().enumerate() {
        ledger.accept(database).await;
        let earlier = settle_one_or_both(database).await;
        ledger.deliver(database, "one", &earlier[0], 10).await;
        assert_eq!(want(database, lanes).await, before);
        if !alone {
            assert!(claim(database, "one", MINUTE).await.is_empty(), "they are given back");
            ledger.deliver(database, "two", &earlier[1], 10).await;
        }
        ledger.accept(database).await;
        let held = settle_one_or_both(database).await;
        let all: usize = held.iter().map(Vec::len).sum();
        assert_eq!(i32::try_from(all), Ok(lanes), "no lane is without an owner");
        assert!(held.iter().flatten().all(|lane| lane.of == number(lanes)));
        let newest_before = earlier.iter().flatten().map(|lane| lane.fence).max();
        assert!(held.iter().flatten().all(|lane| Some(lane.fence) > newest_before));
        // Earlier claims count no more.
        let waiting = pending(database, &held[0]).await;
        let places = placed(&waiting);
        assert!(!places.is_empty());
        let marked = database.mark_delivered("one", &earlier[0], &places).await;
        assert_eq!(marked.expect("no error"), 0);
        for _ in 0..2 {
            ledger.deliver(database, "one", &held[0], 30).await;
            ledger.deliver(database, "two", &held[1], 30).await;
        }
        ledger.deliver(database, "one", &held[0], 1000).await;
        ledger.deliver(database, "two", &held[1], 1000).await;
        ledger.check();
        let newest = database.newest_places(&held.concat()).await.expect("they are read");
        let few = usize::try_from(lanes.min(40)).expect("a small number");
        assert!(newest.len() <= few && newest.len() > 5, "{} in round {round}", newest.len());
        let all = database.delivered_places(&held.concat(), 0, 10_000).await.expect("no error");
        assert!(all.len() >= 80 * (round + 1), "{} in round {round}", all.len());
        before = lanes;
    }
    for owner in OWNERS {
        database.release_lanes(owner).await.expect("they are given back");
    }
}

async fn settle_one_or_both(database: &dyn Database) -> [Vec<Lane>; 2] {
    if !database.serves_one_process() {
        return settle(database).await;
    }
    [claim(database, "one", MINUTE).await, Vec::new()]
}

async fn nobody_is_idle_while_there_are_lanes(database: &dyn Database) {
    if database.serves_one_process() {
        return;
    }
    let owners: Vec<String> = (0..10).map(|n| format!("replica {n}")).collect();
    let mut shares = Vec::new();
    for _ in 0..3 {
        shares.clear();
        for owner in &owners {
            shares.push(claim(database, owner, MINUTE).await.len());
        }
    }
    shares.sort_unstable();
    assert_eq!(shares, [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]);
    for owner in &owners {
        database.release_lanes(owner).await.expect("they are given back");
    }
}

/// An event as the previous program writes it: with a lane, and without a slot.
fn written_by_the_version_before(new: &NewEvent) -> String {
    let event = &new.event;
    format!(
        "INSERT INTO outbox (lane, source, event_id, content_hash, event, state, created_at, \
         refusals) VALUES ({}, '{}', '{}', 'h', '{}', 'pending', 1, 0);",
        event.slot() % 16,
        event.source,
        event.id,
        event.document()
    )
}

/// The previous program, which shares `database`, is safe whatever number of lanes is wanted.
/// `execute` runs its statements.
pub(in super::super) async fn beside_the_version_before(
    database: &dyn Database,
    execute: impl AsyncFn(String),
) {
    let (first, second, third) = (new_event("a"), new_event("a"), new_event("a"));
    let waiting = async |held: &[Lane]| {
        let waiting = pending(database, held).await;
        waiting.into_iter().map(|waiting| waiting.event.id).collect::<Vec<_>>()
    };
    let clear = async |held: &[Lane]| {
        let places = placed(&pending(database, held).await);
        database.mark_delivered("one", held, &places).await.expect("they are marked");
    };
    // At sixteen, a row of the previous program is one as any other.
    execute(written_by_the_version_before(&first)).await;
    store(database, std::slice::from_ref(&second)).await;
    let held = claim(database, "one", MINUTE).await;
    assert_eq!(waiting(&held).await, [&*first.event.id, &*second.event.id]);

    // It gets its slot before the number changes.
    want(database, 64).await;
    claim(database, "one", MINUTE).await;
    let held = claim(database, "one", MINUTE).await;
    assert_eq!(held.len(), 64);
    assert_eq!(waiting(&held).await, [&*first.event.id, &*second.event.id]);
    clear(&held).await;

    // Beyond sixteen, it holds up later events until it has one.
    execute(written_by_the_version_before(&first_again(&first))).await;
    store(database, std::slice::from_ref(&third)).await;
    assert!(waiting(&held).await.is_empty(), "the later event of the subject must wait");
    let held = claim(database, "one", MINUTE).await;
    assert_eq!(waiting(&held).await.len(), 2);
    assert_eq!(waiting(&held).await[1], third.event.id);
    clear(&held).await;

    if database.serves_one_process() {
        return;
    }
    // A previous program that starts now finds no free lane.
    let now = "(extract(epoch from clock_timestamp()) * 1000000)::bigint";
    execute(format!(
        "INSERT INTO relays (owner, seen_at) VALUES ('before', {now});
         UPDATE lanes SET owner = 'before', claimed_until = {now} + 60000000, fence = fence + 1
             WHERE claimed_until <= {now};"
    ))
    .await;
    let still = database.mark_delivered("one", &held, &[]).await;
    assert_eq!(still.expect("no error"), 0);
    // This program goes back to sixteen for it, and shares those.
    assert!(held.len() == 64 && claim(database, "one", MINUTE).await.len() == 8);
    execute(format!(
        "UPDATE lanes SET owner = 'before', claimed_until = {now} + 60000000, fence = fence + 1
             WHERE claimed_until <= {now};"
    ))
    .await;
    let held = claim(database, "one", MINUTE).await;
    assert_eq!((held.len(), held[0].of), (8, Lanes::SIXTEEN));
    // Nothing changes while it holds lanes, nor while it is alive without any.
    execute("UPDATE relays SET seen_at = 0 WHERE owner = 'before'".to_owned()).await;
    assert!(claim(database, "one", MINUTE).await.is_empty(), "its lanes are not free yet");
    execute("UPDATE lanes SET claimed_until = 0 WHERE owner = 'before'".to_owned()).await;
    execute(format!("UPDATE relays SET seen_at = {now} WHERE owner = 'before'")).await;
    assert_eq!(claim(database, "one", MINUTE).await.len(), 8);
    execute("DELETE FROM relays WHERE owner = 'before'".to_owned()).await;
    claim(database, "one", MINUTE).await;
    assert_eq!(claim(database, "one", MINUTE).await.len(), 64);
}

/// Another event of the same subject.
fn first_again(first: &NewEvent) -> NewEvent {
    new_event(first.event.subject.as_deref().expect("it has one"))
}
