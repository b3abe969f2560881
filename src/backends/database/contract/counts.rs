//! Counts of the work that waits.

use std::time::Duration;

use super::{
    super::{Database, NewEvent},
    MINUTE, accept, claim, count, execution, new_event,
    outbox::{pending, placed},
    store,
};
use crate::model::{events::Event, ids, json::Fingerprint};

fn about_an_execution() -> NewEvent {
    let event = Event::with_id(format!("{}:running", ids::new_id()), "t", None, None);
    NewEvent { event, fingerprint: Fingerprint::default() }
}

pub(super) async fn suite(database: &dyn Database) {
    database.forget_processes(Duration::ZERO).await.expect("the database answers");
    let held = claim(database, "one", MINUTE).await;
    let places = placed(&pending(database, &held).await);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
    let before = count(database, 1000).await;
    assert_eq!((before.events.rows, before.lifecycle_events), (0, 0));

    let ours: Vec<NewEvent> = (0..3).map(|_| about_an_execution()).collect();
    store(database, &ours).await;
    let clients: Vec<NewEvent> = (0..5).map(|n| new_event(&n.to_string())).collect();
    store(database, &clients).await;
    accept(database, &execution("counted"), None).await;
    let now = count(database, 1000).await;
    // The announcement of an execution in this suite is a client's event.
    assert_eq!((now.events.rows, now.lifecycle_events), (9, 3));
    assert_eq!(now.executions.rows, before.executions.rows + 1);
    assert!(now.events.oldest.is_some_and(|oldest| oldest < MINUTE));
    // Either limit can be told, however much of the other waits.
    let few = count(database, 2).await;
    assert_eq!((few.events.rows, few.lifecycle_events), (8, 3));

    let stored = database.counted().await.expect("the database answers");
    if database.serves_one_process() {
        assert_eq!(stored, None, "there is nobody else to read it");
    } else {
        let stored = stored.expect("it was stored");
        assert_eq!((stored.events.rows, stored.lifecycle_events), (8, 3));
        assert_eq!(stored.events.dead, few.events.dead);
        assert_eq!(
            (stored.executions.rows, stored.executions.dead),
            (few.executions.rows, few.executions.dead)
        );
        assert!(stored.ended_ago <= stored.begun_ago && stored.begun_ago < MINUTE);
        assert!(stored.events.oldest.is_some_and(|oldest| oldest < MINUTE));
        count(database, 1000).await;
        let stored = database.counted().await.expect("no error").expect("it was stored again");
        assert_eq!(stored.events.rows, 9);
    }
    let places = placed(&pending(database, &held).await);
    database.mark_delivered("one", &held, &places).await.expect("they are marked");
    let after = count(database, 1000).await;
    assert_eq!((after.events.rows, after.lifecycle_events, after.events.oldest), (0, 0, None));
    database.release_lanes("one").await.expect("they are given back");
}
