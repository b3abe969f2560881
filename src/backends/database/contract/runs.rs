//! Runs of the embedded execution service.

use std::time::Duration;

use serde_json::json;

use super::{super::Database, MINUTE, TRACEPARENT};
use crate::model::{
    executions::{ListedEnd, Outcome, StartRequest, Status, Workflow},
    ids, time,
};

pub(super) async fn suite(database: &dyn Database) {
    a_run_is_claimed_by_one_owner(database).await;
    a_lost_claim_cannot_mark_a_run(database).await;
    an_unclaimed_run_is_cancelled_at_once(database).await;
    a_terminated_run_stays_terminated(database).await;
    lists_of_runs_go_on_behind_a_place(database).await;
    concurrent_claims_take_different_runs(database).await;
}

/// A run that nobody has stored yet.
pub(in crate::backends::database) fn request() -> StartRequest {
    StartRequest {
        id: ids::new_id(),
        request_id: ids::new_id(),
        workflow: "echo".to_owned(),
        definition: Workflow::Echo { delay: Duration::ZERO },
        input: json!("input").into(),
        timeout: Some(MINUTE),
        traceparent: Some(TRACEPARENT.to_owned()),
        first_tried: None,
    }
}

async fn new_run(database: &dyn Database) -> StartRequest {
    let request = request();
    assert!(database.insert_run(&request).await.expect("it is stored"));
    request
}

async fn a_run_is_claimed_by_one_owner(database: &dyn Database) {
    let request = new_run(database).await;
    assert!(!database.insert_run(&request).await.expect("the database answers"), "stored twice");
    let claimed = database.claim_runs("one", MINUTE, 10).await.expect("it is claimed");
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].id, request.id);
    assert_eq!(claimed[0].input, request.input);
    assert!(claimed[0].time_left.is_some_and(|left| left <= MINUTE));
    assert!(database.claim_runs("two", MINUTE, 10).await.expect("no error").is_empty());
    let held = renew(database, &request.id).await;
    assert_eq!(held, [(request.id.clone(), false)]);
    assert!(database.cancel_run(&request.id).await.expect("its end is asked for"));
    let held = renew(database, &request.id).await;
    assert_eq!(held, [(request.id.clone(), true)]);

    let fence = claimed[0].fence;
    assert!(database.note_try(&request.id, fence, 1, MINUTE).await.expect("it is counted"));
    database.release_runs("one").await.expect("claims are given back");
    let taken_over = database.claim_runs("two", MINUTE, 10).await.expect("it is claimed");
    assert_eq!((taken_over[0].tries, taken_over[0].cancel_requested), (1, true));
    assert!(taken_over[0].pause > Duration::ZERO, "the next try is due later");
    finish(database, &request.id, taken_over[0].fence, true).await;
}

async fn renew(database: &dyn Database, id: &str) -> Vec<(String, bool)> {
    let other = database.renew_runs("one", &["unknown".to_owned()], MINUTE).await;
    assert!(other.expect("the database answers").is_empty(), "only what is worked on is renewed");
    database.renew_runs("one", &[id.to_owned()], MINUTE).await.expect("claims are renewed")
}

async fn finish(database: &dyn Database, id: &str, fence: i64, expected: bool) {
    let outcome = Outcome::ended(Status::Failed, "it failed", time::now());
    let finished = database.finish_run(id, fence, &outcome).await.expect("the database answers");
    assert_eq!(finished, expected);
}

async fn a_lost_claim_cannot_mark_a_run(database: &dyn Database) {
    let request = new_run(database).await;
    let before = time::now();
    let lost = database.claim_runs("slow", Duration::ZERO, 1).await.expect("it is claimed");
    let taken_over = database.claim_runs("quick", MINUTE, 1).await.expect("it is claimed");
    assert!(taken_over[0].fence > lost[0].fence);
    let noted = database.note_try(&request.id, lost[0].fence, 9, MINUTE).await;
    assert!(!noted.expect("the database answers"));
    finish(database, &request.id, lost[0].fence, false).await;
    finish(database, &request.id, taken_over[0].fence, true).await;
    finish(database, &request.id, taken_over[0].fence, false).await;
    let since = before - Duration::from_secs(1);
    let ended = database.ended_runs(since, None, 100).await.expect("ended runs are listed");
    assert!(ended.iter().any(|run| run.id == request.id && run.status == Status::Failed));
}

async fn lists_of_runs_go_on_behind_a_place(database: &dyn Database) {
    let mut running: Vec<String> = Vec::new();
    for _ in 0..3 {
        running.push(new_run(database).await.id);
    }
    running.sort_unstable();
    let found = database.running_runs(None, 100).await.expect("they are listed");
    assert_eq!(found, running);
    let found = database.running_runs(Some(&running[0]), 1).await.expect("they are listed");
    assert_eq!(found, running[1..2]);
    let before = time::now() - Duration::from_secs(1);
    for id in &running {
        assert!(database.cancel_run(id).await.expect("it is cancelled"));
    }
    let all = database.ended_runs(before, None, 100).await.expect("they are listed");
    let mut paged = Vec::new();
    loop {
        let after = paged.last().map(|end: &ListedEnd| (end.ended_at, end.id.as_str()));
        let page = database.ended_runs(before, after, 1).await.expect("they are listed");
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let runs = database.runs(&running).await.expect("they are readable");
    assert_eq!(runs.len(), 3);
    assert!(database.runs(&["unknown".to_owned()]).await.expect("no error").is_empty());
}

async fn an_unclaimed_run_is_cancelled_at_once(database: &dyn Database) {
    let request = new_run(database).await;
    assert!(database.cancel_run(&request.id).await.expect("it is cancelled"));
    let run = database.run(&request.id).await.expect("it is readable").expect("it exists");
    assert_eq!(run.outcome.status, Status::Cancelled);
    assert!(!database.cancel_run(&request.id).await.expect("the database answers"));
    assert!(!database.cancel_run("unknown").await.expect("the database answers"));
}

async fn a_terminated_run_stays_terminated(database: &dyn Database) {
    let request = new_run(database).await;
    let claimed = database.claim_runs("one", MINUTE, 1).await.expect("it is claimed");
    assert!(database.terminate_run(&request.id, "enough").await.expect("it is terminated"));
    finish(database, &request.id, claimed[0].fence, false).await;
    let run = database.run(&request.id).await.expect("it is readable").expect("it exists");
    assert_eq!(run.outcome.status, Status::Terminated);
    assert_eq!(run.outcome.error.as_deref(), Some("enough"));
    assert!(renew(database, &request.id).await.is_empty());
}

async fn concurrent_claims_take_different_runs(database: &dyn Database) {
    for _ in 0..12 {
        new_run(database).await;
    }
    let claims = (0..4).map(|owner| async move {
        let owner = format!("owner-{owner}");
        let mut taken = Vec::new();
        loop {
            let claimed = database.claim_runs(&owner, MINUTE, 2).await.expect("claims work");
            if claimed.is_empty() {
                return taken;
            }
            taken.extend(claimed.into_iter().map(|run| run.id));
        }
    });
    let mut all: Vec<String> =
        futures_util::future::join_all(claims).await.into_iter().flatten().collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((count, all.len()), (12, 12));
}
