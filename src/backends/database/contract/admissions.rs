//! Accepted work, and answers to repeated idempotency keys.

use std::time::Duration;

use super::{
    super::{Acceptance, Admission, Database, KeyUse, NewEvent, Work},
    MINUTE, accept, admission, count, execution, fingerprint, key, new_event, store,
};
use crate::model::{executions::Execution, ids};

pub(super) async fn suite(database: &dyn Database) {
    an_execution_is_stored_with_its_key_or_not_at_all(database).await;
    a_key_gives_the_first_answer_again(database).await;
    one_bad_admission_leaves_its_neighbours_alone(database).await;
    events_of_many_requests_are_stored_together(database).await;
    callers_that_go_away_hold_nobody_up(database).await;
}

async fn an_execution_is_stored_with_its_key_or_not_at_all(database: &dyn Database) {
    let first = execution("a");
    assert_eq!(accept(database, &first, None).await, Acceptance::Stored);
    let stored = database.execution(&first.id).await.expect("it is readable");
    assert_eq!(stored.as_ref(), Some(&first));
    assert_eq!(accept(database, &first, None).await, Acceptance::Stored, "it is the same one");

    let key = key("taken-id", "body");
    let same_id = Execution { id: first.id.clone(), ..execution("b") };
    assert_eq!(accept(database, &same_id, Some(&key)).await, Acceptance::IdTaken);
    // The key was rolled back together with the execution.
    assert_eq!(accept(database, &execution("b"), Some(&key)).await, Acceptance::Stored);
}

async fn a_key_gives_the_first_answer_again(database: &dyn Database) {
    let used = key("answered", "body");
    assert_eq!(accept(database, &execution("a"), Some(&used)).await, Acceptance::Stored);
    let again = KeyUse { answer: "another answer".to_owned(), ..used.clone() };
    let again = accept(database, &execution("a"), Some(&again)).await;
    assert_eq!(again, Acceptance::Answered(used.answer));
    let other_body = key("answered", "other");
    assert_eq!(accept(database, &execution("a"), Some(&other_body)).await, Acceptance::KeyReused);

    let expired = KeyUse { keep_for: Duration::ZERO, ..key("expired", "body") };
    assert_eq!(accept(database, &execution("a"), Some(&expired)).await, Acceptance::Stored);
    assert_eq!(accept(database, &execution("a"), Some(&expired)).await, Acceptance::Stored);
    let expired = KeyUse { keep_for: Duration::ZERO, ..key("expired too", "body") };
    assert_eq!(accept(database, &execution("a"), Some(&expired)).await, Acceptance::Stored);
    for left in [1, 1, 0] {
        assert_eq!(database.forget_keys(1).await.expect("keys expire"), left);
    }
}

async fn one_bad_admission_leaves_its_neighbours_alone(database: &dyn Database) {
    let stored = execution("a");
    accept(database, &stored, None).await;
    let taken = Execution { request_id: ids::new_id(), ..stored };
    let (good, event, used) = (execution("a"), new_event("a"), key("neighbour", "body"));
    store(database, std::slice::from_ref(&event)).await;
    let other = NewEvent { fingerprint: fingerprint(&ids::new_id()), ..event.clone() };
    let keyed = |event: &NewEvent, key: &str| Admission {
        work: Work::Events(vec![new_event("a"), event.clone()]),
        key: Some(self::key(key, "body")),
    };
    let batch = [
        admission(&taken, Some(&used), None),
        Admission { work: Work::Events(vec![event.clone()]), key: None },
        keyed(&other, "refused"),
        admission(&good, Some(&key("good", "body")), None),
        keyed(&new_event("b"), "stored"),
    ];
    let batch: Vec<&Admission> = batch.iter().collect();
    let expected = [
        Acceptance::IdTaken,
        Acceptance::Stored,
        Acceptance::EventTaken(1),
        Acceptance::Stored,
        Acceptance::Stored,
    ];
    let before = count(database, 1000).await.events.rows;
    assert_eq!(database.accept(&batch).await.expect("the database answers"), expected);
    let after = count(database, 1000).await.events.rows;
    assert_eq!(after, before + 3, "an announcement, and two events of one request");
    let again = [
        Acceptance::IdTaken,
        Acceptance::Stored,
        Acceptance::EventTaken(1),
        Acceptance::Answered(used.answer.clone()),
        Acceptance::Answered(used.answer.clone()),
    ];
    assert_eq!(database.accept(&batch).await.expect("the database answers"), again);
    assert!(database.execution(&good.id).await.expect("it is readable").is_some());
}

async fn events_of_many_requests_are_stored_together(database: &dyn Database) {
    let events: Vec<NewEvent> = (0..5).map(|n| new_event(&format!("s{n}"))).collect();
    let admissions: Vec<Admission> = events
        .iter()
        .map(|event| Admission { work: Work::Events(vec![event.clone()]), key: None })
        .collect();
    let batch: Vec<&Admission> = admissions.iter().collect();
    let all_stored = vec![Acceptance::Stored; 5];
    assert_eq!(database.accept(&batch).await.expect("the database answers"), all_stored);
    assert_eq!(database.accept(&batch).await.expect("the database answers"), all_stored);
    let changed = NewEvent { fingerprint: fingerprint(&ids::new_id()), ..events[0].clone() };
    let changed = Admission { work: Work::Events(vec![changed]), key: None };
    let fresh = Admission { work: Work::Events(vec![new_event("s0")]), key: None };
    let accepted = database.accept(&[&fresh, &changed]).await.expect("the database answers");
    assert_eq!(accepted, [Acceptance::Stored, Acceptance::EventTaken(0)]);
    let waiting = count(database, 1000).await.events.rows;
    let again = database.accept(&[&fresh]).await.expect("the database answers");
    assert_eq!(again, [Acceptance::Stored]);
    let still = count(database, 1000).await.events.rows;
    assert_eq!(waiting, still, "it was there already");
}

/// Wherever a caller drops its call, even inside a transaction, nothing stays locked.
async fn callers_that_go_away_hold_nobody_up(database: &dyn Database) {
    for step in 0..100 {
        let leaving = execution("a");
        let patience = Duration::from_micros(step * 30);
        let leaving = admission(&leaving, None, None);
        let left = tokio::time::timeout(patience, database.accept(&[&leaving])).await;
        // Some calls are stored before their caller drops them; both outcomes are fine.
        assert!(!matches!(left, Ok(Err(_))), "{left:?}");
        let next = execution("a");
        let stored = tokio::time::timeout(MINUTE, accept(database, &next, None)).await;
        assert_eq!(stored.expect("nobody holds it up"), Acceptance::Stored);
    }
}
