//! Records of executions, and lists of them.

use serde_json::json;

use super::{super::Database, accept, execution};
use crate::model::{
    executions::{ListFilter, ListPlace, Outcome, Status},
    ids, time,
};

pub(super) async fn suite(database: &dyn Database) {
    a_status_only_moves_forward(database).await;
    lists_are_newest_first_and_paged(database).await;
    unconfirmed_executions_come_longest_unconfirmed_first(database).await;
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
    assert_eq!(open, [(&waiting).into()]);
}
