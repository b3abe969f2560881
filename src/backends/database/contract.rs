//! What every database must do. Each backend runs this suite on a database of its own.

use std::time::Duration;

use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Acceptance, Database, KeyUse, Lane, NewEvent};
use crate::{
    config::{Pool, Section},
    connection::{BuildContext, Factory},
    model::{
        events::{Event, LANES},
        executions::{Execution, ListFilter, ListPlace, Outcome, StartRequest, Status, Workflow},
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
    a_withdrawn_request_can_be_repeated(database).await;
    a_status_only_moves_forward(database).await;
    lists_are_newest_first_and_paged(database).await;
    unconfirmed_executions_come_longest_unconfirmed_first(database).await;
    a_run_is_claimed_by_one_owner(database).await;
    a_lost_claim_cannot_mark_a_run(database).await;
    an_unclaimed_run_is_cancelled_at_once(database).await;
    a_terminated_run_stays_terminated(database).await;
    concurrent_claims_take_different_runs(database).await;
    events_are_stored_once_and_all_or_none(database).await;
    lanes_are_shared_and_a_lost_one_marks_nothing(database).await;
    a_refused_event_is_a_dead_letter_in_the_end(database).await;
    callers_that_go_away_hold_nobody_up(database).await;
    assert!(database.pool().is_some_and(|pool| pool.in_use == 0), "every checkout came back");
    database.close().await;
}

fn context() -> BuildContext {
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

fn key(name: &str, body: &str, busy_for: Duration) -> KeyUse {
    KeyUse {
        scope: "contract".to_owned(),
        key: name.to_owned(),
        body_hash: body.to_owned(),
        busy_for,
        keep_for: MINUTE,
    }
}

async fn accept(
    database: &dyn Database,
    execution: &Execution,
    key: Option<&KeyUse>,
) -> Acceptance {
    database.accept(execution, key).await.expect("the database answers")
}

async fn an_execution_is_stored_with_its_key_or_not_at_all(database: &dyn Database) {
    let first = execution("a");
    assert_eq!(accept(database, &first, None).await, Acceptance::Stored);
    let stored = database.execution(&first.id).await.expect("it is readable");
    assert_eq!(stored.as_ref(), Some(&first));

    let key = key("taken-id", "body", MINUTE);
    let same_id = Execution { id: first.id.clone(), ..execution("b") };
    assert_eq!(accept(database, &same_id, Some(&key)).await, Acceptance::IdTaken);
    // The key was rolled back together with the execution.
    assert_eq!(accept(database, &execution("b"), Some(&key)).await, Acceptance::Stored);
}

async fn a_key_gives_the_first_answer_again(database: &dyn Database) {
    let first = execution("a");
    let used = key("answered", "body", MINUTE);
    assert_eq!(accept(database, &first, Some(&used)).await, Acceptance::Stored);
    assert_eq!(accept(database, &execution("a"), Some(&used)).await, Acceptance::Busy);
    database.answer(&used, "the answer").await.expect("the answer is kept");
    let again = accept(database, &execution("a"), Some(&used)).await;
    assert_eq!(again, Acceptance::Answered("the answer".to_owned()));
    let other_body = key("answered", "other", MINUTE);
    assert_eq!(accept(database, &execution("a"), Some(&other_body)).await, Acceptance::KeyReused);

    let ended = key("unanswered", "body", Duration::ZERO);
    let second = execution("a");
    assert_eq!(accept(database, &second, Some(&ended)).await, Acceptance::Stored);
    let again = accept(database, &execution("a"), Some(&ended)).await;
    assert_eq!(again, Acceptance::Unanswered(Box::new(second)));

    let expired = KeyUse { keep_for: Duration::ZERO, ..key("expired", "body", MINUTE) };
    assert_eq!(accept(database, &execution("a"), Some(&expired)).await, Acceptance::Stored);
    assert_eq!(accept(database, &execution("a"), Some(&expired)).await, Acceptance::Stored);
    assert_eq!(database.forget_keys().await.expect("keys expire"), 1);
}

async fn a_withdrawn_request_can_be_repeated(database: &dyn Database) {
    let withdrawn = execution("a");
    let used = key("withdrawn", "body", MINUTE);
    assert_eq!(accept(database, &withdrawn, Some(&used)).await, Acceptance::Stored);
    assert!(database.withdraw(&withdrawn.id, Some(&used)).await.expect("it is withdrawn"));
    let again = database.withdraw(&withdrawn.id, Some(&used)).await;
    assert!(!again.expect("the database answers"), "withdrawn twice");
    assert_eq!(database.execution(&withdrawn.id).await.expect("the database answers"), None);
    assert_eq!(accept(database, &withdrawn, Some(&used)).await, Acceptance::Stored);
}

async fn a_status_only_moves_forward(database: &dyn Database) {
    let execution = execution("a");
    accept(database, &execution, None).await;
    let change = async |outcome: &Outcome| {
        database.change(&execution.id, outcome).await.expect("the database answers")
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
    assert!(!database.change("unknown", &completed).await.expect("the database answers"));
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
            database.change(&execution.id, &Outcome::running(time::now())).await.expect("runs")
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
    let old = database.not_handed_over("embedded", Duration::ZERO, 1000).await;
    let old = old.expect("the database answers");
    assert!(old.iter().any(|execution| execution.id == waiting.id));
    let old = database.not_handed_over("embedded", MINUTE, 1000).await;
    let old = old.expect("the database answers");
    assert!(old.iter().all(|execution| execution.id != waiting.id));
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
        let left = tokio::time::timeout(patience, database.accept(&leaving, None)).await;
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

async fn store(database: &dyn Database, events: &[NewEvent]) -> Vec<usize> {
    database.store_events(events).await.expect("the database answers")
}

/// What waits in `held`, as the ids of events.
async fn waiting(database: &dyn Database, held: &[Lane]) -> Vec<String> {
    let pending = database.pending_events(held, 1000).await.expect("the database answers");
    pending.into_iter().map(|pending| pending.event.id).collect()
}

async fn claim(database: &dyn Database, owner: &str, lease: Duration) -> Vec<Lane> {
    database.claim_lanes(owner, lease).await.expect("the database answers")
}

async fn events_are_stored_once_and_all_or_none(database: &dyn Database) {
    let (first, second) = (new_event("a"), new_event("b"));
    let batch = [first.clone(), second.clone()];
    assert!(store(database, &batch).await.is_empty());
    assert!(store(database, &batch).await.is_empty(), "the same events again are no conflict");

    let changed = NewEvent { content_hash: ids::new_id(), ..second.clone() };
    let fresh = new_event("a");
    assert_eq!(store(database, &[fresh.clone(), changed]).await, [1]);

    let held = claim(database, "one", MINUTE).await;
    assert_eq!(waiting(database, &held).await, [first.event.id, second.event.id]);
    assert!(!waiting(database, &held).await.contains(&fresh.event.id), "all or none");
    let backlog = database.backlog(1).await.expect("it is counted");
    assert_eq!((backlog.rows, backlog.dead), (2, 0));
    assert!(backlog.oldest.is_some_and(|oldest| oldest < MINUTE));
    database.release_lanes("one").await.expect("they are given back");
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
    let seqs: Vec<i64> = pending.iter().map(|pending| pending.seq).collect();
    assert!(!seqs.is_empty());
    let marked = database.mark_delivered("one", &lost, &seqs).await.expect("no error");
    assert_eq!(marked, 0, "its lanes were claimed by another");
    let marked = database.mark_delivered("two", &lost, &seqs).await.expect("no error");
    assert_eq!(marked, 0, "these are the numbers of earlier claims");
    let marked = database.mark_delivered("two", &held, &seqs).await.expect("they are marked");
    assert_eq!(marked, seqs.len());
    assert!(waiting(database, &held).await.is_empty());

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
