//! The contract of every database. Each backend runs this suite on a database of its own.

mod admissions;
mod counts;
mod executions;
mod hand_over;
mod lanes;
mod outbox;
pub(super) mod runs;
mod unreadable;

use std::time::Duration;

pub(super) use lanes::beside_the_version_before;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    Acceptance, Admission, Claim, Database, Ended, KeyUse, Lane, NewEvent, NewRecord, StatusChange,
    Work,
};
use crate::{
    config::{Pool, Section},
    connection::{BuildContext, Factory},
    model::{
        backlog::Count,
        events::Event,
        executions::{Ending, Execution, Outcome, Status, Workflow},
        ids,
        json::Fingerprint,
        time,
    },
    tasks::Tasks,
    telemetry::metrics::Metrics,
};

const MINUTE: Duration = Duration::from_mins(1);
const MEBIBYTE: i64 = 1 << 20;
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
    admissions::suite(database).await;
    hand_over::suite(database).await;
    executions::suite(database).await;
    runs::suite(database).await;
    outbox::suite(database).await;
    lanes::suite(database).await;
    counts::suite(database).await;
    unreadable::suite(database).await;
    assert!(database.pool().is_some_and(|pool| pool.in_use == 0), "every checkout came back");
    database.close().await;
}

/// Rows as the previous version writes them after this version has migrated the schema. Both may
/// run side by side during an upgrade, and this version continues with the rows of the previous
/// one. The hash is that of `body`.
pub(super) const WRITTEN_BY_THE_VERSION_BEFORE: &str = r#"
    INSERT INTO executions (id, workflow, input, status, created_at, backend, request_id, definition)
    VALUES ('old', 'echo', 'null', 'accepted', 1, 'before', 'request',
        '{"kind":"echo","delay":{"secs":0,"nanos":0}}');
    INSERT INTO idempotency_keys
        (scope, idempotency_key, body_hash, execution_id, answer, busy_until, expires_at)
    VALUES ('contract', 'old', '230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5',
        'old', NULL, 1, 9000000000000000);
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
    let claimed =
        database.claim_executions("before", "one", MINUTE, 10, MEBIBYTE).await.expect("no error");
    let claimed = claimed.readable;
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
        pool: pool(),
        metrics: Metrics::new("0", "0").connection(super::FAMILY),
        tasks: Tasks::default(),
        closing: CancellationToken::new(),
    }
}

/// Of the default size, unless the tests try a small one.
fn pool() -> Pool {
    let default = Pool::default();
    #[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
    let default = Pool {
        max_size: crate::backends::test_server::small_pool().unwrap_or(default.max_size),
        ..default
    };
    default
}

fn execution(workflow: &str) -> Execution {
    Execution {
        id: ids::new_id(),
        workflow: workflow.to_owned(),
        input: json!({"n": 1, "text": "ünïcödé"}).into(),
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
        redrives: 0,
    }
}

/// Changes one execution without an announcement.
async fn change(database: &dyn Database, id: &str, outcome: &Outcome) -> bool {
    let (id, announcements) = (id.to_owned(), Vec::new());
    let change = StatusChange { id, outcome: outcome.clone(), announcements };
    database.change(&[&change]).await.expect("the database answers") == [true]
}

fn key(name: &str, body: &str) -> KeyUse {
    KeyUse {
        scope: "contract".to_owned(),
        key: name.to_owned(),
        fingerprint: fingerprint(body),
        answer: format!("the answer to {body}"),
        keep_for: MINUTE,
    }
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

fn new_event(subject: &str) -> NewEvent {
    let data = json!({"n": 1}).into();
    let event = Event::new("contract.event", Some(subject.to_owned()), Some(&data));
    let fingerprint = event.fingerprint();
    NewEvent { event, fingerprint }
}

fn fingerprint(of: &str) -> Fingerprint {
    Fingerprint::new(|_, out| out.extend_from_slice(of.as_bytes()))
}

async fn store(database: &dyn Database, events: &[NewEvent]) -> Acceptance {
    admit(database, &Admission { work: Work::Events(events.to_vec()), key: None }).await
}

async fn count(database: &dyn Database, most: i64) -> Count {
    database.count_waiting(most).await.expect("it is counted")
}

async fn claim(database: &dyn Database, owner: &str, lease: Duration) -> Vec<Lane> {
    database.claim_lanes(owner, lease).await.expect("the database answers")
}
