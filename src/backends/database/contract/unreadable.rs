//! Rows that this program cannot read: they do not block others, and their readable parts are
//! shown.

use serde_json::{Value, json};

use super::{
    super::{Database, NewEvent},
    MEBIBYTE, MINUTE, accept, change, claim, execution, new_event, runs, store,
};
use crate::model::{
    events::Event,
    executions::{Execution, ListFilter, Outcome, StartRequest, Status},
    ids,
    json::Json,
    time,
};

pub(super) async fn suite(database: &dyn Database) {
    an_unreadable_event_is_told_apart_from_its_neighbours(database).await;
    what_is_read_at_once_is_bounded_by_bytes(database).await;
    an_unreadable_execution_is_a_dead_letter_beside_its_neighbours(database).await;
    a_running_execution_is_followed_whatever_its_input(database).await;
    an_unreadable_run_has_failed_and_others_go_on(database).await;
}

/// JSON readers stop at 128 levels; writers do not.
fn unreadable_value() -> Json {
    (0..150).fold(json!(1), |inner: Value, _| json!([inner])).into()
}

fn event_with(data: &Json) -> NewEvent {
    let event = Event::new("contract.event", Some("unreadable".to_owned()), Some(data));
    let fingerprint = event.fingerprint();
    NewEvent { event, fingerprint }
}

async fn an_unreadable_event_is_told_apart_from_its_neighbours(database: &dyn Database) {
    let (before, after) = (new_event("unreadable"), new_event("unreadable"));
    let events = [before.clone(), event_with(&unreadable_value()), after.clone()];
    store(database, &events).await;
    let held = claim(database, "one", MINUTE).await;
    let pending = database.pending_events(&held, 1000, i64::MAX).await.expect("they are read");
    let readable: Vec<&str> = pending.readable.iter().map(|p| p.event.id.as_str()).collect();
    assert!(readable.ends_with(&[&before.event.id, &after.event.id]), "{readable:?}");
    let [unreadable] = &*pending.unreadable else { panic!("{:?}", pending.unreadable) };
    assert!(unreadable.reason.contains("cannot be read"), "{}", unreadable.reason);

    let lane = *held.iter().find(|lane| lane.number == unreadable.lane).expect("it is held");
    let reason = &unreadable.reason;
    let dead = database.note_refusal("one", lane, unreadable.seq, reason, 1).await;
    assert!(dead.expect("no error"), "no other try can end otherwise");
    let letters = database.dead_letters(None, 10).await.expect("they are listed");
    assert_eq!((letters.len(), &letters[0].event, &letters[0].error), (1, &None, reason));
    assert!(database.discard(unreadable.seq).await.expect("it is removed"));
    deliver_all(database).await;
}

async fn what_is_read_at_once_is_bounded_by_bytes(database: &dyn Database) {
    deliver_all(database).await;
    let large = |bytes: usize| event_with(&json!("ü".repeat(bytes / 2)).into());
    let events: Vec<NewEvent> = [10, 10_000, 1000, 1000].map(large).to_vec();
    store(database, &events).await;
    let held = claim(database, "one", MINUTE).await;
    let read = async |limit, max_bytes| {
        let pending = database.pending_events(&held, limit, max_bytes).await;
        pending.expect("they are read").readable
    };
    assert_eq!(read(1000, i64::MAX).await.len(), 4);
    assert_eq!(read(2, i64::MAX).await.len(), 2, "by count");
    assert_eq!(read(1000, 5000).await.len(), 1, "the second is too large for it");
    assert_eq!(read(1000, 1).await.len(), 1, "the first comes whatever it has");
    assert_eq!(read(1000, 11_500).await.len(), 2);
    deliver_all(database).await;
    assert!(database.pending_events(&[], 10, 10).await.expect("no error").readable.is_empty());
}

/// Clears the waiting events, which do not matter any more.
async fn deliver_all(database: &dyn Database) {
    let held = claim(database, "one", MINUTE).await;
    let pending = database.pending_events(&held, 1000, i64::MAX).await.expect("they are read");
    let places = super::outbox::placed(&pending.readable);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
    database.release_lanes("one").await.expect("they are given back");
}

async fn an_unreadable_execution_is_a_dead_letter_beside_its_neighbours(database: &dyn Database) {
    let backend = ids::new_id();
    let fresh = |input| Execution { backend: backend.clone(), input, ..execution(&backend) };
    let (bad, good) = (fresh(unreadable_value()), fresh(json!(1).into()));
    accept(database, &bad, None).await;
    accept(database, &good, None).await;
    let claimed =
        database.claim_executions(&backend, "one", MINUTE, 10, MEBIBYTE).await.expect("no error");
    assert_eq!((claimed.readable.len(), &claimed.readable[0].execution), (1, &good));
    let [unreadable] = &*claimed.unreadable else { panic!("{:?}", claimed.unreadable) };
    assert_eq!(unreadable.execution, (&bad).into());

    let outcome = Outcome::ended(Status::Failed, unreadable.reason.clone(), time::now());
    let event = new_event(&bad.id);
    let rejected = database.reject_execution(&bad.id, unreadable.fence, &outcome, &event).await;
    assert!(rejected.expect("no error"));
    let letters = database.rejected_executions(None, 10).await.expect("they are listed");
    assert_eq!((letters.len(), &letters[0].execution.id), (1, &bad.id));
    let filter = ListFilter { workflow: Some(backend), limit: 10, ..ListFilter::default() };
    let listed = database.executions(&filter).await.expect("lists are readable");
    let listed: Vec<(&str, &Json)> = listed.iter().map(|e| (&*e.id, &e.input)).collect();
    assert_eq!(listed, [(&*good.id, &good.input), (&*bad.id, &Json::null())]);
    let shown = database.execution(&bad.id).await.expect("no error").expect("it exists");
    assert!(shown.error.is_some_and(|error| error.contains("cannot be read")));
    assert!(database.discard_execution(&bad.id).await.expect("no error"));
}

async fn a_running_execution_is_followed_whatever_its_input(database: &dyn Database) {
    let backend = ids::new_id();
    let bad = Execution { backend: backend.clone(), input: unreadable_value(), ..execution("a") };
    accept(database, &bad, None).await;
    assert!(change(database, &bad.id, &Outcome::running(time::now())).await);
    let followed = database.unconfirmed(&backend, 10).await.expect("no error");
    assert_eq!(followed.len(), 1);
    assert_eq!((&followed[0].id, followed[0].status), (&bad.id, Status::Running));
    let open = database.open_among(std::slice::from_ref(&bad.id)).await.expect("no error");
    assert_eq!(open, followed);
}

async fn an_unreadable_run_has_failed_and_others_go_on(database: &dyn Database) {
    let since = time::now();
    let bad = StartRequest { input: unreadable_value(), ..runs::request() };
    let good = runs::request();
    for request in [&bad, &good] {
        assert!(database.insert_run(request).await.expect("it is stored"));
    }
    let claimed = database.claim_runs("one", MINUTE, 1000).await.expect("they are claimed");
    assert!(claimed.iter().all(|run| run.id != bad.id), "it cannot run");
    let run = claimed.iter().find(|run| run.id == good.id).expect("it is claimed");
    let (id, fence) = (&*run.id, run.fence);
    let completed = Outcome {
        status: Status::Completed,
        result: Some(unreadable_value()),
        error: None,
        started_at: None,
        finished_at: Some(time::now()),
    };
    assert!(database.finish_run(id, fence, &completed).await.expect("it ends"));
    let ended = database.ended_runs(since, None, 10).await.expect("they are readable");
    for id in [&bad.id, &good.id] {
        let run = database.run(id).await.expect("no error").expect("it exists");
        assert_eq!(run.outcome.status, Status::Failed);
        assert!(run.outcome.error.as_ref().is_some_and(|error| error.contains("cannot be read")));
        assert!(ended.iter().any(|end| end.id == *id));
    }
}
