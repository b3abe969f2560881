//! Records of executions, and lists of them.

use serde_json::json;

use super::{
    super::{Database, StatusChange},
    MINUTE, accept, change, execution, new_event,
};
use crate::model::{
    executions::{Execution, ListFilter, ListPlace, Outcome, Status},
    ids, time,
};

pub(super) async fn suite(database: &dyn Database) {
    a_status_only_moves_forward(database).await;
    each_change_of_many_stands_alone_and_announces_itself_once(database).await;
    no_end_comes_before_the_start(database).await;
    lists_are_newest_first_and_paged(database).await;
    unconfirmed_executions_come_longest_unconfirmed_first(database).await;
}

async fn a_status_only_moves_forward(database: &dyn Database) {
    let execution = execution("a");
    accept(database, &execution, None).await;
    let change = async |outcome: &Outcome| self::change(database, &execution.id, outcome).await;
    let started_at = time::now();
    assert!(change(&Outcome::running(started_at)).await);
    assert!(!change(&Outcome::running(time::now())).await, "running twice");
    let completed = Outcome {
        status: Status::Completed,
        result: Some(json!([1, 2]).into()),
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
    assert!(!self::change(database, "unknown", &completed).await);
}

async fn each_change_of_many_stands_alone_and_announces_itself_once(database: &dyn Database) {
    let all: Vec<Execution> = (0..4).map(|_| execution("a")).collect();
    for execution in &all {
        accept(database, execution, None).await;
    }
    assert!(change(database, &all[1].id, &Outcome::running(time::now())).await);
    assert!(change(database, &all[2].id, &Outcome::ended(Status::Failed, "x", time::now())).await);
    let waiting = async || super::count(database, 10_000).await.events.rows;
    let before = waiting().await;
    let mut changes: Vec<StatusChange> = all
        .iter()
        .map(|execution| StatusChange {
            id: execution.id.clone(),
            outcome: Outcome::running(time::now()),
            announcements: vec![new_event(&execution.id)],
        })
        .collect();
    changes[1].outcome = Outcome::ended(Status::Cancelled, "no\0w", time::now());
    let changes: Vec<&StatusChange> = changes.iter().collect();
    let made = database.change(&changes).await.expect("the database answers");
    assert_eq!(made, [true, true, false, true]);
    assert_eq!(waiting().await, before + 3, "a change that is not made is not announced");
    let again = database.change(&changes).await.expect("the database answers");
    assert_eq!(again, [false; 4]);
    assert_eq!(waiting().await, before + 3);
    let stored = database.execution(&all[1].id).await.expect("no error").expect("it exists");
    assert_eq!(stored.error.as_deref(), Some("now"), "NUL cannot be stored everywhere");
}

/// The clock of a backend may be behind ours.
async fn no_end_comes_before_the_start(database: &dyn Database) {
    let execution = execution("a");
    accept(database, &execution, None).await;
    let started_at = time::now();
    assert!(change(database, &execution.id, &Outcome::running(started_at)).await);
    let early = started_at - MINUTE;
    assert!(change(database, &execution.id, &Outcome::ended(Status::Failed, "x", early)).await);
    let stored = database.execution(&execution.id).await.expect("no error").expect("it exists");
    assert_eq!((stored.started_at, stored.finished_at), (Some(started_at), Some(started_at)));
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
        assert!(change(database, &execution.id, &Outcome::running(time::now())).await);
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
    assert_eq!(open, [(&waiting).into()]);
}
