//! The contract of every event broker. Each backend runs this suite, the networked ones against a
//! real server.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::{Instant, timeout};

use super::EventBroker;
use crate::model::events::{Event, Position, StoredEvent};

/// Long enough for a loaded machine; no test waits for it to elapse.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs the suite on a broker whose stream has no other writer.
pub(super) async fn suite(broker: Arc<dyn EventBroker>) {
    broker.probe().await.expect("the probe of a working broker is good");
    events_are_read_in_the_order_in_which_they_were_published(&*broker).await;
    a_batch_is_read_whole_and_in_pages(&*broker).await;
    a_reader_at_the_end_waits_for_the_next_event(&broker).await;
    waiting_ends_when_its_time_is_up(&*broker).await;
    the_range_covers_what_was_published(&*broker).await;
    a_place_that_holds_nothing_is_lost(&*broker).await;
    a_place_from_the_future_cannot_be_resumed(&*broker).await;
    broker.close().await;
}

fn event(n: usize) -> Event {
    Event::new("contract.event", Some("subject".to_owned()), Some(&json!({ "n": n }).into()))
}

fn ids(events: &[StoredEvent]) -> Vec<String> {
    let id = |stored: &StoredEvent| {
        Event::stored(Arc::clone(&stored.json)).expect("stored events are readable").id
    };
    events.iter().map(id).collect()
}

async fn a_place_that_holds_nothing_is_lost(broker: &dyn EventBroker) {
    let places = broker.publish(&[&event(1), &event(2)]).await.expect("publishing works");
    assert_eq!(places.len(), 2);
    assert_eq!(broker.lost(&places).await.expect("places are looked at"), []);
    let later = Position { millis: places[1].millis + 1_000_000, number: 0 };
    let lost = broker.lost(&[places[0], later]).await.expect("places are looked at");
    assert_eq!(lost, [later]);
    let read = broker.read(places[0].before(), 1).await.expect("reading works");
    assert_eq!(read[0].position, places[0], "an event is where it was said to be");
}

async fn end(broker: &dyn EventBroker) -> Position {
    broker.range().await.expect("the range is readable").newest
}

async fn events_are_read_in_the_order_in_which_they_were_published(broker: &dyn EventBroker) {
    let begin = end(broker).await;
    let published: Vec<Event> = (0..20).map(event).collect();
    for event in &published {
        broker.publish(&[event]).await.expect("publishing works");
    }
    let read = broker.read(begin, 100).await.expect("reading works");
    let expected: Vec<String> = published.iter().map(|event| event.id.clone()).collect();
    assert_eq!(ids(&read), expected);
    assert!(read.is_sorted_by(|a, b| a.position < b.position));
    assert_eq!(
        &*read[3].json,
        &**published[3].document(),
        "an event is stored as it was published"
    );
}

async fn a_batch_is_read_whole_and_in_pages(broker: &dyn EventBroker) {
    let begin = end(broker).await;
    let batch: Vec<Event> = (0..50).map(event).collect();
    broker.publish(&batch.iter().collect::<Vec<_>>()).await.expect("publishing a batch works");
    let mut read = Vec::new();
    let mut place = begin;
    loop {
        let page = broker.read(place, 7).await.expect("reading works");
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        place = last.position;
        read.extend(page);
    }
    assert_eq!(ids(&read), batch.iter().map(|event| event.id.clone()).collect::<Vec<_>>());
}

async fn a_reader_at_the_end_waits_for_the_next_event(broker: &Arc<dyn EventBroker>) {
    let begin = end(&**broker).await;
    let reader = Arc::clone(broker);
    let waiting = async move { reader.wait(begin, 10, DEADLINE).await };
    let published = event(1);
    let publishing = async {
        tokio::task::yield_now().await;
        broker.publish(&[&published]).await
    };
    let (read, sent) = tokio::join!(timeout(DEADLINE * 2, waiting), publishing);
    sent.expect("publishing works while another call waits");
    let read = read.expect("the wait ends").expect("waiting works");
    assert_eq!(ids(&read), [published.id]);
}

async fn waiting_ends_when_its_time_is_up(broker: &dyn EventBroker) {
    let begin = Instant::now();
    let read = broker.wait(end(broker).await, 10, Duration::from_millis(50)).await;
    assert!(read.expect("an empty wait is no error").is_empty());
    assert!(begin.elapsed() >= Duration::from_millis(50));
    assert!(begin.elapsed() < DEADLINE);
}

async fn the_range_covers_what_was_published(broker: &dyn EventBroker) {
    let range = broker.range().await.expect("the range is readable");
    assert!(range.can_resume_after(range.newest));
    let read = broker.read(range.complete_after, 1000).await.expect("reading works");
    assert_eq!(read.last().map(|event| event.position), Some(range.newest));
    assert!(read.iter().all(|event| range.can_resume_after(event.position)));
}

async fn a_place_from_the_future_cannot_be_resumed(broker: &dyn EventBroker) {
    let range = broker.range().await.expect("the range is readable");
    let future = Position { millis: range.newest.millis + 60_000, number: 0 };
    assert!(!range.can_resume_after(future));
}
