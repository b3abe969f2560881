//! Accepted executions on their way to the execution service.

use std::time::Duration;

use super::{
    super::{Claim, Database, Ended, Release},
    MEBIBYTE, MINUTE, accept, admission, admit, change, execution, new_event,
};
use crate::model::{
    executions::{Ending, Execution, Outcome, Status},
    ids, time,
};

pub(super) async fn suite(database: &dyn Database) {
    a_hand_over_is_claimed_by_one_process(database).await;
    one_claim_brings_a_bounded_number_of_bytes(database).await;
    a_refused_execution_is_a_dead_letter_until_it_is_redriven(database).await;
    what_was_never_tried_ends_at_once(database).await;
    a_role_has_one_holder(database).await;
}

fn claim_by(owner: &str) -> Claim {
    Claim { owner: owner.to_owned(), lease: MINUTE }
}

async fn a_hand_over_is_claimed_by_one_process(database: &dyn Database) {
    let backend = ids::new_id();
    let fresh = || Execution { backend: backend.clone(), ..execution("a") };
    let claim = async |owner: &str, lease: Duration| {
        let claimed = database.claim_executions(&backend, owner, lease, 10, MEBIBYTE).await;
        claimed.expect("no error").readable
    };
    let (held, free) = (fresh(), fresh());
    admit(database, &admission(&held, None, Some(claim_by("one")))).await;
    accept(database, &free, None).await;
    // A lease of zero length ends at once.
    let lost = claim("one", Duration::ZERO).await;
    assert_eq!(lost.len(), 1, "what was claimed when it was accepted is not free");
    assert_eq!((&lost[0].execution, lost[0].first_tried), (&free, None));
    let taken = claim("one", MINUTE).await;
    assert_eq!(taken.len(), 1);
    assert!(taken[0].first_tried.is_some(), "the lost claim may have tried");
    assert!(claim("one", MINUTE).await.is_empty());

    let release = async |fence, untried| {
        let release = Release { id: free.id.clone(), fence, untried };
        let other = Release { id: "unknown".to_owned(), fence: 7, untried: false };
        database.release_executions(&[other, release]).await.expect("no error");
    };
    release(lost[0].fence, true).await;
    assert!(claim("one", MINUTE).await.is_empty(), "who lost it cannot give it back");
    release(taken[0].fence, true).await;
    let again = claim("one", MINUTE).await;
    assert_eq!(again[0].first_tried, None, "no try has reached anything");
    let left = claim("two", MINUTE).await.len();
    let expected = if database.serves_one_process() { 2 } else { 0 };
    assert_eq!(left, expected, "a database of our own holds claims of the dead only");
    for execution in [&held, &free] {
        assert!(change(database, &execution.id, &Outcome::running(time::now())).await);
    }
    assert!(claim("two", Duration::ZERO).await.is_empty(), "what runs is not handed over");
}

async fn one_claim_brings_a_bounded_number_of_bytes(database: &dyn Database) {
    let backend = ids::new_id();
    let mut all = Vec::new();
    for size in [600, 300, 300, 10] {
        let input = serde_json::json!("x".repeat(size)).into();
        let execution = Execution { backend: backend.clone(), input, ..execution("a") };
        accept(database, &execution, None).await;
        all.push(execution.id);
    }
    let claim = async |limit, max_bytes| -> Vec<String> {
        let claimed = database.claim_executions(&backend, "one", MINUTE, limit, max_bytes).await;
        let claimed = claimed.expect("no error").readable.into_iter();
        claimed.map(|claimed| claimed.execution.id).collect()
    };
    assert_eq!(claim(10, 500).await, all[..1], "the first alone is larger");
    assert_eq!(claim(1, 900).await, all[1..2]);
    assert_eq!(claim(10, 900).await, all[2..]);
}

async fn a_refused_execution_is_a_dead_letter_until_it_is_redriven(database: &dyn Database) {
    let refused = Execution { backend: ids::new_id(), ..execution("a") };
    accept(database, &refused, None).await;
    let claim = async || {
        let claimed =
            database.claim_executions(&refused.backend, "one", MINUTE, 10, MEBIBYTE).await;
        claimed.expect("no error").readable.pop()
    };
    let claimed = claim().await.expect("it is free");
    let (id, fence) = (refused.id.as_str(), claimed.fence);
    let count = async |fence| database.count_refusal(id, fence, MINUTE).await.expect("no error");
    assert_eq!(count(fence).await, Some(1));
    assert_eq!(count(fence + 1).await, None);
    assert_eq!(claim().await, None, "it rests for a while");
    let outcome = Outcome::ended(Status::Failed, "too\0long", time::now());
    let reject = async |fence| {
        let event = new_event("a");
        database.reject_execution(id, fence, &outcome, &event).await.expect("no error")
    };
    assert!(!reject(fence + 1).await, "who lost the claim has no say");
    assert!(reject(fence).await);
    assert!(!reject(fence).await, "it is rejected once");
    let dead = super::count(database, 10).await.executions.dead;
    assert_eq!(dead, 1);
    let removed = database.remove_ended(Duration::ZERO, 1000).await;
    removed.expect("old executions are removed");
    let letters = database.rejected_executions(None, 10).await.expect("they are listed");
    assert_eq!((letters.len(), letters[0].refusals), (1, 1));
    assert_eq!(letters[0].execution.error.as_deref(), Some("toolong"));
    let redrive = async |redrives| {
        let event = new_event(id);
        database.redrive_execution(id, redrives, &event).await.expect("no error")
    };
    let waiting = async || super::count(database, 10_000).await.events.rows;
    let before = waiting().await;
    assert!(!redrive(1).await, "it was redriven by nobody");
    assert!(redrive(0).await);
    assert!(!redrive(0).await, "redriven twice");
    assert_eq!(waiting().await, before + 1, "it is announced once");
    let claimed = claim().await.expect("it is free again");
    assert_eq!((&claimed.execution.status, claimed.first_tried), (&Status::Accepted, None));
    assert_eq!(claimed.execution.redrives, 1);
    assert!(reject(claimed.fence).await);
    assert!(database.discard_execution(id).await.expect("no error"));
    assert!(database.rejected_executions(None, 10).await.expect("they are listed").is_empty());
    database.remove_ended(Duration::ZERO, 1000).await.expect("old executions are removed");
    assert_eq!(database.execution(id).await.expect("it is readable"), None);
}

async fn what_was_never_tried_ends_at_once(database: &dyn Database) {
    let end = async |execution: &Execution| {
        let outcome = Ending::Cancel.before_start(time::now());
        let event = new_event(&execution.id);
        let ended = database.end_accepted(&execution.id, &Ending::Cancel, &outcome, &event).await;
        ended.expect("no error")
    };
    let untried = execution("a");
    accept(database, &untried, None).await;
    assert_eq!(end(&untried).await, Ended::Now);
    assert_eq!(end(&untried).await, Ended::NotAccepted);
    let stored = database.execution(&untried.id).await.expect("no error").expect("it exists");
    assert_eq!(stored.status, Status::Cancelled);

    let backend = ids::new_id();
    let tried = Execution { backend: backend.clone(), ..execution("a") };
    admit(database, &admission(&tried, None, Some(claim_by("one")))).await;
    assert_eq!(end(&tried).await, Ended::Later);
    let wished = async || database.wished_endings(&backend, 10).await.expect("no error");
    assert!(wished().await.is_empty(), "it is due when the execution runs");
    assert!(change(database, &tried.id, &Outcome::running(time::now())).await);
    let due = wished().await;
    assert_eq!((due.len(), &due[0].0), (1, &tried.id));
    assert_eq!(due[0].1.as_ref().expect("it is readable"), &Ending::Cancel);
    database.forget_wish(&tried.id).await.expect("it is forgotten");
    assert!(wished().await.is_empty());
}

async fn a_role_has_one_holder(database: &dyn Database) {
    let take = async |owner, lease| {
        database.take_role("contract", owner, lease).await.expect("the database answers")
    };
    assert!(take("one", MINUTE).await);
    assert!(take("one", MINUTE).await, "its holder keeps it");
    assert_eq!(take("two", MINUTE).await, database.serves_one_process());
    database.give_role_back("contract", "two").await.expect("nothing happens");
    assert_eq!(take("two", MINUTE).await, database.serves_one_process());
    database.give_role_back("contract", "one").await.expect("it is given back");
    assert!(take("two", Duration::ZERO).await);
    assert!(take("one", MINUTE).await, "it expires");
}
