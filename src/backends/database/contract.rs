//! What every database must do. Each backend runs this suite on a database of its own.

use std::time::Duration;

use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Acceptance, Admission, Claim, Database, Ended, KeyUse, Lane, NewEvent, NewRecord, PendingEvent,
    Work,
};
use crate::{
    config::{Pool, Section},
    connection::{BuildContext, Factory},
    model::{
        events::{Event, LANES, Position},
        executions::{
            Ending, Execution, ListFilter, ListPlace, Outcome, StartRequest, Status, Workflow,
        },
        ids, time,
    },
    telemetry::metrics::Metrics,
};

const MINUTE: Duration = Duration::from_mins(1);
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Builds the database with `factory` and runs the suite on it.
pub(super) async fn suite(factory: &dyn Factory<dyn Database>, section: &Section) {
    let context = context();
    // Replicas that start together migrate once.
    let (first, second) =
        tokio::join!(factory.build(section, &context), factory.build(section, &context));
    second.expect("a second build finds the schema made");
    let database = first.expect("an empty database is migrated");
    let database = &*database;

    database.probe().await.expect("the probe of a working database is good");
    an_execution_is_stored_with_its_key_or_not_at_all(database).await;
    a_key_gives_the_first_answer_again(database).await;
    one_bad_admission_leaves_its_neighbours_alone(database).await;
    events_of_many_requests_are_stored_together(database).await;
    a_hand_over_is_claimed_by_one_process(database).await;
    a_refused_execution_is_a_dead_letter_until_it_is_redriven(database).await;
    what_was_never_tried_ends_at_once(database).await;
    a_role_has_one_holder(database).await;
    a_status_only_moves_forward(database).await;
    lists_are_newest_first_and_paged(database).await;
    unconfirmed_executions_come_longest_unconfirmed_first(database).await;
    a_run_is_claimed_by_one_owner(database).await;
    a_lost_claim_cannot_mark_a_run(database).await;
    an_unclaimed_run_is_cancelled_at_once(database).await;
    a_terminated_run_stays_terminated(database).await;
    concurrent_claims_take_different_runs(database).await;
    events_are_stored_once_and_all_or_none(database).await;
    who_is_forgotten_has_no_share_of_the_lanes(database).await;
    lanes_are_shared_and_a_lost_one_marks_nothing(database).await;
    a_refused_event_is_a_dead_letter_in_the_end(database).await;
    callers_that_go_away_hold_nobody_up(database).await;
    assert!(database.pool().is_some_and(|pool| pool.in_use == 0), "every checkout came back");
    database.close().await;
}

/// What the version before this one writes, after this one has migrated: both may run side by side
/// during an upgrade, and this one goes on with what that one left.
pub(super) const WRITTEN_BY_THE_VERSION_BEFORE: &str = r#"
    INSERT INTO executions (id, workflow, input, status, created_at, backend, request_id, definition)
    VALUES ('old', 'echo', 'null', 'accepted', 1, 'before', 'request',
        '{"kind":"echo","delay":{"secs":0,"nanos":0}}');
    INSERT INTO idempotency_keys
        (scope, idempotency_key, body_hash, execution_id, answer, busy_until, expires_at)
    VALUES ('contract', 'old', 'body', 'old', NULL, 1, 9000000000000000);
    INSERT INTO outbox (lane, source, event_id, content_hash, event, state, created_at,
        delivered_at, refusals)
    VALUES (3, 's', 'old', 'h', '{"specversion":"1.0","id":"old","source":"s","type":"t"}',
        'delivered', 1, 2, 0);
"#;

/// Holds for a database to which [`WRITTEN_BY_THE_VERSION_BEFORE`] was added.
pub(super) async fn understands_the_version_before(database: &dyn Database) {
    let ending = Ending::Cancel;
    let outcome = ending.before_start(time::now());
    let ended = database.end_accepted("old", &ending, &outcome, &new_event("old")).await;
    assert_eq!(ended.expect("no error"), Ended::Later, "that version may have handed it over");
    let claimed = database.claim_executions("before", "one", MINUTE, 10).await.expect("no error");
    assert_eq!(claimed.len(), 1, "it is handed over again");
    assert!(claimed[0].first_tried.is_some_and(|tried| tried > MINUTE));

    let used = key("old", "body");
    assert_eq!(accept(database, &execution("a"), Some(&used)).await, Acceptance::Busy);
    let delivered = database.delivered_events(None, 10).await.expect("no error");
    assert_eq!((delivered.len(), delivered[0].position), (1, None));
    let held = claim(database, "one", MINUTE).await;
    assert!(database.newest_places(&held).await.expect("no error").is_empty());
}

pub(super) fn context() -> BuildContext {
    BuildContext {
        connection: super::FAMILY,
        instance: "contract".into(),
        pool: Pool::default(),
        metrics: Metrics::new("0", "0").connection(super::FAMILY),
        tasks: TaskTracker::new(),
        closing: CancellationToken::new(),
    }
}

fn execution(workflow: &str) -> Execution {
    Execution {
        id: ids::new_id(),
        workflow: workflow.to_owned(),
        input: json!({"n": 1, "text": "ünïcödé"}),
        status: Status::Accepted,
        result: None,
        error: None,
        created_at: time::now(),
        started_at: None,
        finished_at: None,
        confirmed_at: None,
        backend: "embedded".to_owned(),
        request_id: ids::new_id(),
        timeout: Some(MINUTE),
        definition: Workflow::Echo { delay: Duration::ZERO },
        traceparent: Some(TRACEPARENT.to_owned()),
    }
}

fn key(name: &str, body: &str) -> KeyUse {
    KeyUse {
        scope: "contract".to_owned(),
        key: name.to_owned(),
        body_hash: body.to_owned(),
        answer: format!("the answer to {body}"),
        keep_for: MINUTE,
    }
}

fn claim_by(owner: &str) -> Claim {
    Claim { owner: owner.to_owned(), lease: MINUTE }
}

fn admission(execution: &Execution, key: Option<&KeyUse>, claim: Option<Claim>) -> Admission {
    let announcement = new_event(&execution.id);
    let record = NewRecord { execution: execution.clone(), announcement, claim };
    Admission { work: Work::Execution(Box::new(record)), key: key.cloned() }
}

async fn accept(
    database: &dyn Database,
    execution: &Execution,
    key: Option<&KeyUse>,
) -> Acceptance {
    admit(database, &admission(execution, key, None)).await
}

async fn admit(database: &dyn Database, admission: &Admission) -> Acceptance {
    let mut accepted = database.accept(&[admission]).await.expect("the database answers");
    accepted.pop().expect("one answer for one admission")
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
    let first = NewEvent { content_hash: ids::new_id(), ..event.clone() };
    let batch = [
        admission(&taken, Some(&used), None),
        Admission { work: Work::Events(vec![event]), key: None },
        Admission { work: Work::Events(vec![new_event("a"), first]), key: None },
        admission(&good, Some(&used), None),
        admission(&execution("a"), Some(&used), None),
    ];
    let batch: Vec<&Admission> = batch.iter().collect();
    let expected = [
        Acceptance::IdTaken,
        Acceptance::Stored,
        Acceptance::EventTaken(1),
        Acceptance::Stored,
        Acceptance::Answered(used.answer.clone()),
    ];
    assert_eq!(database.accept(&batch).await.expect("the database answers"), expected);
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
    let changed = NewEvent { content_hash: ids::new_id(), ..events[0].clone() };
    let changed = Admission { work: Work::Events(vec![changed]), key: None };
    let fresh = Admission { work: Work::Events(vec![new_event("s0")]), key: None };
    let accepted = database.accept(&[&fresh, &changed]).await.expect("the database answers");
    assert_eq!(accepted, [Acceptance::Stored, Acceptance::EventTaken(0)]);
    let waiting = database.backlog(1000).await.expect("it is counted").rows;
    let again = database.accept(&[&fresh]).await.expect("the database answers");
    assert_eq!(again, [Acceptance::Stored]);
    let still = database.backlog(1000).await.expect("it is counted").rows;
    assert_eq!(waiting, still, "it was there already");
}

async fn a_hand_over_is_claimed_by_one_process(database: &dyn Database) {
    let backend = ids::new_id();
    let fresh = || Execution { backend: backend.clone(), ..execution("a") };
    let claim = async |owner: &str, lease: Duration| {
        database.claim_executions(&backend, owner, lease, 10).await.expect("no error")
    };
    let (held, free) = (fresh(), fresh());
    admit(database, &admission(&held, None, Some(claim_by("one")))).await;
    accept(database, &free, None).await;
    // A lease of no time ends at once.
    let lost = claim("one", Duration::ZERO).await;
    assert_eq!(lost.len(), 1, "what was claimed when it was accepted is not free");
    assert_eq!((&lost[0].execution, lost[0].first_tried), (&free, None));
    let taken = claim("one", MINUTE).await;
    assert_eq!(taken.len(), 1);
    assert!(taken[0].first_tried.is_some(), "the lost claim may have tried");
    assert!(claim("one", MINUTE).await.is_empty());

    let release = async |fence, untried| {
        database.release_execution(&free.id, fence, untried).await.expect("no error");
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
        database.change(&execution.id, &Outcome::running(time::now()), &[]).await.expect("it runs");
    }
    assert!(claim("two", Duration::ZERO).await.is_empty(), "what runs is not handed over");
}

async fn a_refused_execution_is_a_dead_letter_until_it_is_redriven(database: &dyn Database) {
    let refused = Execution { backend: ids::new_id(), ..execution("a") };
    accept(database, &refused, None).await;
    let claim = async || {
        let claimed = database.claim_executions(&refused.backend, "one", MINUTE, 10).await;
        claimed.expect("no error").pop()
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
    let dead = database.waiting_executions(10).await.expect("it is counted").dead;
    assert_eq!(dead, 1);
    let removed = database.remove_ended(Duration::ZERO, 1000).await;
    removed.expect("old executions are removed");
    let letters = database.rejected_executions(None, 10).await.expect("they are listed");
    assert_eq!((letters.len(), letters[0].refusals), (1, 1));
    assert_eq!(letters[0].execution.error.as_deref(), Some("toolong"));
    assert!(database.redrive_execution(id).await.expect("no error"));
    assert!(!database.redrive_execution(id).await.expect("no error"), "redriven twice");
    let claimed = claim().await.expect("it is free again");
    assert_eq!((&claimed.execution.status, claimed.first_tried), (&Status::Accepted, None));
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
    database.change(&tried.id, &Outcome::running(time::now()), &[]).await.expect("it runs");
    let due = wished().await;
    assert_eq!((due.len(), &due[0].0.id, &due[0].1), (1, &tried.id, &Ending::Cancel));
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

async fn a_status_only_moves_forward(database: &dyn Database) {
    let execution = execution("a");
    accept(database, &execution, None).await;
    let change = async |outcome: &Outcome| {
        database.change(&execution.id, outcome, &[]).await.expect("the database answers")
    };
    let started_at = time::now();
    assert!(change(&Outcome::running(started_at)).await);
    assert!(!change(&Outcome::running(time::now())).await, "running twice");
    let completed = Outcome {
        status: Status::Completed,
        result: Some(json!([1, 2])),
        error: None,
        started_at: None,
        finished_at: Some(time::now()),
    };
    assert!(change(&completed).await);
    assert!(!change(&Outcome::ended(Status::Failed, "late", time::now())).await, "ended twice");
    let stored =
        database.execution(&execution.id).await.expect("it is readable").expect("it exists");
    assert_eq!(stored.status, Status::Completed);
    assert_eq!(stored.result, completed.result);
    assert_eq!(stored.started_at, Some(started_at), "the start stands");
    assert!(!database.change("unknown", &completed, &[]).await.expect("the database answers"));
}

async fn lists_are_newest_first_and_paged(database: &dyn Database) {
    let workflow = ids::new_id();
    let mut all = Vec::new();
    for _ in 0..5 {
        let execution = execution(&workflow);
        accept(database, &execution, None).await;
        all.insert(0, execution);
    }
    let mut filter = ListFilter { workflow: Some(workflow), limit: 2, ..ListFilter::default() };
    let mut seen = Vec::new();
    loop {
        let page = database.executions(&filter).await.expect("lists are readable");
        let Some(last) = page.last() else { break };
        filter.before = Some(ListPlace { created_at: last.created_at, id: last.id.clone() });
        seen.extend(page);
    }
    assert_eq!(seen, all);
    filter.before = None;
    filter.status = Some(Status::Completed);
    assert!(database.executions(&filter).await.expect("lists are readable").is_empty());
}

async fn unconfirmed_executions_come_longest_unconfirmed_first(database: &dyn Database) {
    let backend = ids::new_id();
    let (mut first, mut second) = (execution("a"), execution("a"));
    for execution in [&mut first, &mut second] {
        execution.backend.clone_from(&backend);
        accept(database, execution, None).await;
        assert!(
            database
                .change(&execution.id, &Outcome::running(time::now()), &[])
                .await
                .expect("it runs")
        );
    }
    let ids = async || -> Vec<String> {
        let found = database.unconfirmed(&backend, 10).await.expect("the database answers");
        found.into_iter().map(|execution| execution.id).collect()
    };
    assert_eq!(ids().await, [first.id.clone(), second.id.clone()]);
    database.confirm(std::slice::from_ref(&first.id)).await.expect("it is confirmed");
    assert_eq!(ids().await, [second.id, first.id]);

    let waiting = execution("a");
    accept(database, &waiting, None).await;
    let asked = [waiting.id.clone(), "unknown".to_owned()];
    let open = database.open_among(&asked).await.expect("the database answers");
    assert_eq!(open, std::slice::from_ref(&waiting));
}

/// A run that nobody has stored yet.
pub(super) fn request() -> StartRequest {
    StartRequest {
        id: ids::new_id(),
        request_id: ids::new_id(),
        workflow: "echo".to_owned(),
        definition: Workflow::Echo { delay: Duration::ZERO },
        input: json!("input"),
        timeout: Some(MINUTE),
        traceparent: Some(TRACEPARENT.to_owned()),
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
    let ended = database.ended_runs(since, 100).await.expect("ended runs are readable");
    assert!(ended.iter().any(|run| run.id == request.id && run.outcome.status == Status::Failed));
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

/// Wherever a caller leaves, inside a transaction too, nothing stays locked.
async fn callers_that_go_away_hold_nobody_up(database: &dyn Database) {
    for step in 0..100 {
        let leaving = execution("a");
        let patience = Duration::from_micros(step * 30);
        let leaving = admission(&leaving, None, None);
        let left = tokio::time::timeout(patience, database.accept(&[&leaving])).await;
        // Sooner or later one is stored before its caller leaves; either is fine.
        assert!(!matches!(left, Ok(Err(_))), "{left:?}");
        let next = execution("a");
        let stored = tokio::time::timeout(MINUTE, accept(database, &next, None)).await;
        assert_eq!(stored.expect("nobody holds it up"), Acceptance::Stored);
    }
}

fn new_event(subject: &str) -> NewEvent {
    let event = Event::new("contract.event", Some(subject.to_owned()), Some(json!({"n": 1})));
    NewEvent { event, content_hash: ids::new_id() }
}

async fn store(database: &dyn Database, events: &[NewEvent]) -> Acceptance {
    admit(database, &Admission { work: Work::Events(events.to_vec()), key: None }).await
}

/// What waits in `held`, as the ids of events.
async fn waiting(database: &dyn Database, held: &[Lane]) -> Vec<String> {
    let pending = database.pending_events(held, 1000).await.expect("the database answers");
    pending.into_iter().map(|pending| pending.event.id).collect()
}

/// Where the broker may have put them.
fn placed(pending: &[PendingEvent]) -> Vec<(i64, Position)> {
    let place = |number| Position { millis: 1_795_445_533_304, number };
    (0..).zip(pending).map(|(number, pending)| (pending.seq, place(number))).collect()
}

async fn claim(database: &dyn Database, owner: &str, lease: Duration) -> Vec<Lane> {
    database.claim_lanes(owner, lease).await.expect("the database answers")
}

async fn events_are_stored_once_and_all_or_none(database: &dyn Database) {
    // What the suite has announced so far is of no interest here.
    let held = claim(database, "one", MINUTE).await;
    let pending = database.pending_events(&held, 1000).await.expect("the database answers");
    let places = placed(&pending);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
    database.remove_delivered(Duration::ZERO, 1000).await.expect("they are removed");
    database.release_lanes("one").await.expect("they are given back");

    let (first, second) = (new_event("a"), new_event("b"));
    let batch = [first.clone(), second.clone()];
    assert_eq!(store(database, &batch).await, Acceptance::Stored);
    assert_eq!(store(database, &batch).await, Acceptance::Stored, "they are the same events");

    let changed = NewEvent { content_hash: ids::new_id(), ..second.clone() };
    let fresh = new_event("a");
    assert_eq!(store(database, &[fresh.clone(), changed]).await, Acceptance::EventTaken(1));

    let held = claim(database, "one", MINUTE).await;
    assert_eq!(waiting(database, &held).await, [first.event.id, second.event.id]);
    assert!(!waiting(database, &held).await.contains(&fresh.event.id), "all or none");
    let backlog = database.backlog(1).await.expect("it is counted");
    assert_eq!((backlog.rows, backlog.dead), (2, 0));
    assert!(backlog.oldest.is_some_and(|oldest| oldest < MINUTE));
    database.release_lanes("one").await.expect("they are given back");
}

async fn who_is_forgotten_has_no_share_of_the_lanes(database: &dyn Database) {
    let all = usize::try_from(LANES).expect("a small number");
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
    let all = usize::try_from(LANES).expect("a small number");
    let lost = claim(database, "one", Duration::ZERO).await;
    assert_eq!(lost.len(), all, "who is alone holds every lane");
    let share = if database.serves_one_process() { all } else { all / 2 };
    let taken = claim(database, "two", MINUTE).await;
    assert_eq!(taken.len(), share, "a claim that is not renewed ends");
    database.release_lanes("one").await.expect("they are given back");
    let held = claim(database, "two", MINUTE).await;
    assert_eq!(held.len(), all, "who is alone again holds every lane");
    assert!(taken.iter().all(|lane| held.contains(lane)), "a renewed claim stays what it is");
    let pending = database.pending_events(&held, 1000).await.expect("the database answers");
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
    let pending = database.pending_events(&held, 10).await.expect("the database answers");
    let (seq, number) = (pending[0].seq, pending[0].lane);
    let lane = *held.iter().find(|lane| lane.number == number).expect("it is held");
    let refuse = async |owner: &str| {
        database.note_refusal(owner, lane, seq, "too\0long", 2).await.expect("no error")
    };
    assert!(!refuse("two").await, "who does not hold the lane has no say");
    assert!(!refuse("one").await);
    assert!(refuse("one").await, "the second refusal was the last");
    assert!(waiting(database, &held).await.is_empty(), "the lane goes on");
    let backlog = database.backlog(10).await.expect("it is counted");
    assert_eq!((backlog.rows, backlog.oldest, backlog.dead), (0, None, 1));

    let letters =
        async |before| database.dead_letters(before, 10).await.expect("the database answers");
    let found = letters(None).await;
    assert_eq!((found.len(), found[0].seq, found[0].refusals), (1, seq, 2));
    assert_eq!((&found[0].event, found[0].error.as_str()), (&refused.event, "toolong"));
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
