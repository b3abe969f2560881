//! Each blocking read has its own connection while it lasts.

use super::*;

#[tokio::test]
async fn a_dropped_wait_takes_its_connection_with_it() {
    let scratch = Scratch::new();
    let broker = scratch.broker(json!({})).await;
    let hour = Duration::from_hours(1);
    let waiting = timeout(Duration::from_millis(50), broker.wait(Position::START, 1, hour));
    assert!(waiting.await.is_err());
    let pool = broker.pool().unwrap();
    assert_eq!((pool.in_use, pool.idle), (0, 0));
    broker.publish(&[&event(1)]).await.unwrap();
    assert_eq!(broker.wait(Position::START, 1, hour).await.unwrap().len(), 1);
    assert_eq!(broker.pool().unwrap().idle, 1);
}

#[tokio::test]
async fn a_blocking_read_ends_with_its_server() {
    let server = Server::start().await;
    let broker = build(json!({"url": server.url()})).await.unwrap();
    let waiting = broker.wait(Position::START, 1, Duration::from_hours(1));
    let killing = async {
        sleep(Duration::from_millis(50)).await;
        drop(server);
    };
    let (waited, ()) = tokio::join!(waiting, killing);
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Disconnected);
    assert_eq!(broker.pool().unwrap().idle, 0);
}

async fn read_nothing(broker: &dyn EventBroker, wait: Duration) {
    assert!(broker.wait(Position::START, 1, wait).await.unwrap().is_empty());
}

async fn no_connection_is_pooled(broker: &dyn EventBroker) {
    until("no connection is idle", async || broker.pool().unwrap().idle == 0).await;
}

#[tokio::test]
async fn the_connection_of_a_blocking_read_is_closed_when_idle() {
    let scratch = Scratch::new();
    let section = Section(json!({"url": scratch.url, "stream": scratch.stream}));
    let idle_timeout = Duration::from_millis(100);
    let limits = Limits { idle_timeout, keepalive: Duration::ZERO, ..Limits::default() };
    let context = context_with(limits, &Metrics::new("test", "test"));
    let broker = Factory.build(&section, &context).await.unwrap();
    for _ in 0..2 {
        read_nothing(&*broker, Duration::from_millis(10)).await;
        no_connection_is_pooled(&*broker).await;
    }
}

#[tokio::test]
async fn an_idle_connection_that_died_silently_is_found_before_a_read_meets_it() {
    let server = Server::start().await;
    let link = Link::to(&server.address()).await;
    let limits = Limits {
        keepalive: Duration::from_millis(100),
        acquire_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let context = context_with(limits, &Metrics::new("test", "test"));
    let section = Section(json!({"url": format!("redis://{}", link.address)}));
    let broker = Factory.build(&section, &context).await.unwrap();
    read_nothing(&*broker, Duration::from_millis(10)).await;
    assert_eq!(broker.pool().unwrap().idle, 1);
    link.forget_connections();
    no_connection_is_pooled(&*broker).await;
    let begin = Instant::now();
    read_nothing(&*broker, Duration::from_millis(10)).await;
    assert!(begin.elapsed() < Duration::from_millis(400), "no read waits for a dead one");
}

#[tokio::test]
async fn a_long_blocking_read_is_no_leak() {
    let scratch = Scratch::new();
    let section = Section(json!({"url": scratch.url, "stream": scratch.stream}));
    let limits = Limits { leak_after: Duration::from_millis(1500), ..Limits::default() };
    let metrics = Metrics::new("test", "test");
    let broker = Factory.build(&section, &context_with(limits, &metrics)).await.unwrap();
    read_nothing(&*broker, Duration::from_secs(2)).await;
    let none = r#"agentarea_connection_leaks_total{connection="event_broker"} 0"#;
    assert!(metrics.text().contains(none));
}
