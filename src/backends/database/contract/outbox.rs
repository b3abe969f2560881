//! Events until the broker has them.

use std::time::Duration;

use super::{
    super::{Acceptance, Database, Lane, NewEvent, PendingEvent},
    MINUTE, claim, count, fingerprint, new_event, store,
};
use crate::model::{events::Position, ids, json::Json, lanes::Lanes};

pub(super) async fn suite(database: &dyn Database) {
    events_are_stored_once_and_all_or_none(database).await;
    forgotten_processes_have_no_share_of_the_lanes(database).await;
    lanes_are_shared_and_a_lost_one_marks_nothing(database).await;
    a_refused_event_is_a_dead_letter_in_the_end(database).await;
}

/// The ids of the events that wait in `held`.
async fn waiting(database: &dyn Database, held: &[Lane]) -> Vec<String> {
    pending(database, held).await.into_iter().map(|pending| pending.event.id).collect()
}

pub(super) async fn pending(database: &dyn Database, held: &[Lane]) -> Vec<PendingEvent> {
    let pending = database.pending_events(held, 1000, i64::MAX).await;
    pending.expect("the database answers").readable
}

/// Places that the broker may have given to them.
pub(super) fn placed(pending: &[PendingEvent]) -> Vec<(i64, Position)> {
    let place = |number| Position { millis: 1_795_445_533_304, number };
    (0..).zip(pending).map(|(number, pending)| (pending.seq, place(number))).collect()
}

async fn events_are_stored_once_and_all_or_none(database: &dyn Database) {
    // Earlier announcements of the suite do not matter here.
    let held = claim(database, "one", MINUTE).await;
    let pending = pending(database, &held).await;
    let places = placed(&pending);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
    database.remove_delivered(Duration::ZERO, 1000).await.expect("they are removed");
    database.release_lanes("one").await.expect("they are given back");

    let (first, second) = (new_event("a"), new_event("b"));
    let batch = [first.clone(), second.clone()];
    assert_eq!(store(database, &batch).await, Acceptance::Stored);
    assert_eq!(store(database, &batch).await, Acceptance::Stored, "they are the same events");

    let changed = NewEvent { fingerprint: fingerprint(&ids::new_id()), ..second.clone() };
    let fresh = new_event("a");
    assert_eq!(store(database, &[fresh.clone(), changed]).await, Acceptance::EventTaken(1));

    let held = claim(database, "one", MINUTE).await;
    assert_eq!(waiting(database, &held).await, [first.event.id, second.event.id]);
    assert!(!waiting(database, &held).await.contains(&fresh.event.id), "all or none");
    let backlog = count(database, 1).await.events;
    assert_eq!((backlog.rows, backlog.dead), (2, 0));
    assert!(backlog.oldest.is_some_and(|oldest| oldest < MINUTE));
    database.release_lanes("one").await.expect("they are given back");
}

async fn forgotten_processes_have_no_share_of_the_lanes(database: &dyn Database) {
    let all = usize::try_from(Lanes::SIXTEEN.number()).expect("a small number");
    let forget = async |silent_for| {
        database.forget_processes(silent_for).await.expect("the database answers");
    };
    claim(database, "gone", Duration::ZERO).await;
    forget(MINUTE).await;
    let share = if database.serves_one_process() { all } else { all / 2 };
    assert_eq!(claim(database, "two", MINUTE).await.len(), share, "it was seen lately");
    forget(Duration::ZERO).await;
    assert_eq!(claim(database, "two", MINUTE).await.len(), all);
    database.release_lanes("two").await.expect("they are given back");
}

async fn lanes_are_shared_and_a_lost_one_marks_nothing(database: &dyn Database) {
    let all = usize::try_from(Lanes::SIXTEEN.number()).expect("a small number");
    let lost = claim(database, "one", Duration::ZERO).await;
    assert_eq!(lost.len(), all, "who is alone holds every lane");
    let share = if database.serves_one_process() { all } else { all / 2 };
    let taken = claim(database, "two", MINUTE).await;
    assert_eq!(taken.len(), share, "a claim that is not renewed ends");
    database.release_lanes("one").await.expect("they are given back");
    let held = claim(database, "two", MINUTE).await;
    assert_eq!(held.len(), all, "who is alone again holds every lane");
    assert!(taken.iter().all(|lane| held.contains(lane)), "a renewed claim stays what it is");
    let pending = pending(database, &held).await;
    let seqs = placed(&pending);
    assert!(!seqs.is_empty());
    let marked = database.mark_delivered("one", &lost, &seqs).await.expect("no error");
    assert_eq!(marked, 0, "its lanes were claimed by another");
    let marked = database.mark_delivered("two", &lost, &seqs).await.expect("no error");
    assert_eq!(marked, 0, "these are the numbers of earlier claims");
    let marked = database.mark_delivered("two", &held, &seqs).await.expect("they are marked");
    assert_eq!(marked, seqs.len());
    assert!(waiting(database, &held).await.is_empty());

    let delivered = database.delivered_events(None, 1000).await.expect("they are read");
    let places: Vec<(i64, Option<Position>)> =
        delivered.iter().map(|event| (event.seq, event.position)).collect();
    let newest_first: Vec<_> = seqs.iter().rev().map(|(seq, at)| (*seq, Some(*at))).collect();
    assert_eq!(places, newest_first);
    let newest = database.newest_places(&held).await.expect("they are read");
    assert!(newest.contains(&seqs[seqs.len() - 1].1));
    let elsewhere = [(seqs[0].0, Position { millis: 1, number: 1 })];
    let oldest_first = database.delivered_places(&held, seqs[0].0, 1000).await;
    assert_eq!(oldest_first.expect("they are read"), seqs[1..]);
    let again = database.send_again("two", &held, &elsewhere).await.expect("no error");
    assert_eq!(again, 0, "it was handed over again by somebody else");
    let again = database.send_again("one", &lost, &seqs[..1]).await.expect("no error");
    assert_eq!(again, 0, "its lanes were claimed by another");
    let again = database.send_again("two", &held, &seqs[..1]).await.expect("no error");
    assert_eq!(again, 1);
    assert_eq!(waiting(database, &held).await.len(), 1);
    database.mark_delivered("two", &held, &seqs).await.expect("it is marked");

    if !database.serves_one_process() {
        assert!(claim(database, "three", MINUTE).await.is_empty(), "nothing is free yet");
        assert_eq!(claim(database, "two", MINUTE).await.len(), all / 2, "the surplus is given up");
        assert_eq!(claim(database, "three", MINUTE).await.len(), all / 2);
        database.release_lanes("three").await.expect("they are given back");
    }
    database.release_lanes("two").await.expect("they are given back");
    let removed = database.remove_delivered(MINUTE, 1000).await.expect("no error");
    assert_eq!(removed, 0, "what was delivered lately stays");
    let removed = database.remove_delivered(Duration::ZERO, 1000).await.expect("they are removed");
    assert_eq!(removed, seqs.len());
}

async fn a_refused_event_is_a_dead_letter_in_the_end(database: &dyn Database) {
    let refused = new_event("a");
    store(database, std::slice::from_ref(&refused)).await;
    let held = claim(database, "one", MINUTE).await;
    let pending = pending(database, &held).await;
    let (seq, number) = (pending[0].seq, pending[0].lane);
    let lane = *held.iter().find(|lane| lane.number == number).expect("it is held");
    let refuse = async |owner: &str| {
        database.note_refusal(owner, lane, seq, "too\0long", 2).await.expect("no error")
    };
    assert!(!refuse("two").await, "who does not hold the lane has no say");
    assert!(!refuse("one").await);
    assert!(refuse("one").await, "the second refusal was the last");
    assert!(waiting(database, &held).await.is_empty(), "the lane goes on");
    let backlog = count(database, 10).await.events;
    assert_eq!((backlog.rows, backlog.oldest, backlog.dead), (0, None, 1));

    let letters =
        async |before| database.dead_letters(before, 10).await.expect("the database answers");
    let found = letters(None).await;
    assert_eq!((found.len(), found[0].seq, found[0].refusals), (1, seq, 2));
    let document = Json::stored(refused.event.document().to_string()).expect("it is JSON");
    assert_eq!((found[0].event.as_ref(), &*found[0].error), (Some(&document), "toolong"));
    assert!(letters(Some(seq)).await.is_empty());
    assert!(database.redrive(seq).await.expect("the database answers"));
    assert!(!database.redrive(seq).await.expect("the database answers"), "redriven twice");
    assert_eq!(waiting(database, &held).await, [refused.event.id]);
    assert!(!database.discard(seq).await.expect("no error"), "it is no dead letter now");
    assert!(!refuse("one").await, "it has all its tries again");
    assert!(refuse("one").await);
    assert!(database.discard(seq).await.expect("the database answers"));
    assert!(letters(None).await.is_empty());
    database.release_lanes("one").await.expect("they are given back");
}
