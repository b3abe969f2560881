//! The same on a Redis that stops, loses events, refuses events and is cut off.

use super::*;
#[cfg(feature = "postgres")]
use crate::support::{Link, Passing};
use crate::support::{
    Redis,
    ledger::{Ledger, from_the_beginning},
};

#[tokio::test(flavor = "multi_thread")]
async fn events_that_redis_acknowledged_and_lost_are_delivered_again() {
    let mut redis = Redis::start_with(&["--appendonly", "no"]).await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let ledger = Ledger::new(&[&service]);
    let faults = async {
        for _ in 0..3 {
            ledger.more(200).await;
            redis.down();
            ledger.more(50).await;
            redis.up().await;
        }
        ledger.more(200).await;
    };
    ledger.under_load(faults).await;
    // A new service sees the current content of the stream.
    let service = service.kill().start().await;
    ledger.check(&service).await;

    // A loss is also noticed while no new events arrive.
    redis.down();
    redis.up().await;
    eventually("all is delivered again", async || {
        let delivered = metric(&service, "agentarea_outbox_delivered_total").await;
        (delivered >= f64::from(u32::try_from(ledger.total()).unwrap())).then_some(())
    })
    .await;
    let service = service.kill().start().await;
    ledger.check(&service).await;
}

/// `examples/inbox.rs`, which `cargo test` builds.
#[tokio::test]
async fn a_consumer_with_an_inbox_handles_repeats_once() {
    let mut redis = Redis::start_with(&["--appendonly", "no"]).await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_agentarea-api"));
    let inbox = program.with_file_name("examples").join("inbox");
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let mut consumer = std::process::Command::new(&inbox)
        .args([&service.base, folder.path().join("inbox.db").to_str().unwrap()])
        .stdout(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("{error}: run `cargo build --examples`"));
    let lines = |what: &str| {
        let text = std::fs::read_to_string(&said).unwrap();
        text.lines().filter(|line| line.starts_with(what)).count()
    };
    // It starts at the end of the stream, so it must be there before the first event.
    let mut n = 0;
    eventually("it follows", async || {
        assert_eq!(send_cloud_event(&service, &cloud_event("a", n)).await.0, 202);
        n += 1;
        (lines("handled") > 0).then_some(())
    })
    .await;
    for _ in 0..5 {
        assert_eq!(send_cloud_event(&service, &cloud_event("a", n)).await.0, 202);
        n += 1;
    }
    let delivered = async || metric(&service, "agentarea_outbox_delivered_total").await;
    eventually("all is delivered", async || {
        (delivered().await >= f64::from(u32::try_from(n).unwrap())).then_some(())
    })
    .await;
    redis.down();
    redis.up().await;
    eventually("what was lost comes again", async || (lines("repeat dropped") >= 5).then_some(()))
        .await;
    let handled = lines("handled");
    assert!((6..=n).contains(&handled), "{handled} of {n} were handled");
    consumer.kill().unwrap();
    consumer.wait().unwrap();
}

#[tokio::test]
async fn events_accepted_while_redis_is_down_arrive_when_it_is_back() {
    let mut redis = Redis::start().await;
    let service = Setup::new()
        .variable("REDIS_URL", &redis.url())
        .set("outbox.degraded_after", "\"1s\"")
        .start()
        .await;
    service.healthy().await;
    redis.down();
    for n in 0..20 {
        assert_eq!(send_cloud_event(&service, &cloud_event("a", n)).await.0, 202);
    }
    eventually("they are counted", async || {
        let oldest = metric(&service, "agentarea_outbox_oldest_seconds").await;
        (metric(&service, "agentarea_outbox_rows").await >= 20.0 && oldest > 0.0).then_some(())
    })
    .await;
    let outbox = service.json("/health").await["outbox"]["event_broker"].clone();
    assert!(outbox["rows"].as_i64().unwrap() >= 20, "{outbox}");
    assert!(outbox["oldest_seconds"].as_f64().unwrap() > 0.0, "{outbox}");
    assert_eq!(outbox["dead_letters"], 0);
    // A service that dies meanwhile delivers the events after its restart.
    let service = service.kill().start().await;
    let late_since = |health: &Value| health["outbox"]["event_broker"]["late_since"].clone();
    let late = service
        .health("work is late", |health| {
            health["status"] == "degraded" && late_since(health).is_string()
        })
        .await;
    assert!(late["outbox"]["execution_service"]["late_since"].is_null(), "{late}");
    assert!(metric(&service, "agentarea_outbox_late_seconds").await > 0.0);
    redis.up().await;
    service.healthy().await;
    let mut events = from_the_beginning(&service).await;
    let expected: Vec<String> = (0..20).map(|n| format!("a-{n}")).collect();
    assert_eq!(events.ids(20).await, expected);
    eventually("nothing waits", async || {
        (metric(&service, "agentarea_outbox_rows").await < 1.0).then_some(())
    })
    .await;
    assert!(metric(&service, "agentarea_dead_letters").await < 1.0);
    let outbox = service.json("/health").await["outbox"]["event_broker"].clone();
    assert!(outbox["late_since"].is_null(), "{outbox}");
    assert!(outbox["delivered_per_second"].as_f64().unwrap() > 0.0, "{outbox}");
    eventually("it is told", async || {
        let log = service.log();
        let told = log.matches("for longer than outbox.degraded_after").count();
        assert!(told <= 1, "it is told once: {log}");
        let over = log.contains("accepted work leaves for the event broker in time again");
        (told == 1 && over).then_some(())
    })
    .await;
}

#[tokio::test]
async fn too_many_waiting_events_are_refused_and_let_in_again() {
    let mut redis = Redis::start().await;
    let service =
        Setup::new().variable("REDIS_URL", &redis.url()).set("outbox.max_rows", "10").start().await;
    service.healthy().await;
    redis.down();
    for n in 0..10 {
        assert_eq!(send_cloud_event(&service, &cloud_event("a", n)).await.0, 202);
    }
    let refused = service.post("/v1/events").json(&json!({"type": "x"})).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    redis.up().await;
    eventually("it is accepted", async || {
        let (status, _) = service.send("/v1/events", &json!({"type": "x"})).await;
        (status == 202).then_some(())
    })
    .await;
}

/// Sends until nothing is accepted for longer than the interval between counts; returns how many
/// were.
async fn accepted(mut send: impl AsyncFnMut() -> u16) -> usize {
    let (mut accepted, mut last) = (0, std::time::Instant::now());
    while last.elapsed() < std::time::Duration::from_secs(4) {
        match send().await {
            202 => (accepted, last) = (accepted + 1, std::time::Instant::now()),
            503 => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            other => panic!("{other} is neither 202 nor 503"),
        }
    }
    accepted
}

#[tokio::test]
async fn events_of_clients_and_those_about_executions_have_limits_of_their_own() {
    let mut redis = Redis::start().await;
    let start = async |redis: &Redis| {
        let setup = Setup::new().variable("REDIS_URL", &redis.url());
        let service = setup.set("outbox.max_rows", "200").start().await;
        service.healthy().await;
        service
    };
    let execution = json!({"workflow": "echo", "input": 1});
    let service = start(&redis).await;
    redis.down();
    let mut n = 0;
    let event = async || {
        n += 1;
        send_cloud_event(&service, &cloud_event("a", n)).await.0
    };
    assert_eq!(accepted(event).await, 200, "exactly as many as may wait");
    let (status, problem) = service.send("/v1/executions", &execution).await;
    assert_eq!(status, 202, "a queue full of events refuses no execution: {problem}");
    drop(service);

    redis.up().await;
    let service = start(&redis).await;
    redis.down();
    let execute = async || service.send("/v1/executions", &execution).await.0.as_u16();
    // Each has three events, of which the last two come later.
    let started = accepted(execute).await;
    assert!((67..=200).contains(&started), "{started}");
    let refused = service.post("/v1/executions").json(&execution).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(send_cloud_event(&service, &cloud_event("b", 0)).await.0, 202);
    redis.up().await;
    eventually("executions are accepted again", async || {
        (service.send("/v1/executions", &execution).await.0 == 202).then_some(())
    })
    .await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn replicas_show_the_same_depth_which_one_counts_for_all() {
    let mut redis = Redis::start().await;
    let database = crate::support::Database::create().await;
    let replica =
        || Setup::new().variable("REDIS_URL", &redis.url()).variable("DATABASE_URL", &database.url);
    let (one, two) = tokio::join!(replica().start(), replica().start());
    one.healthy().await;
    two.healthy().await;
    let waiting = async |service: &crate::support::Service| {
        service.json("/health").await["outbox"]["event_broker"].clone()
    };
    redis.down();
    for n in 0..30 {
        assert_eq!(send_cloud_event(&one, &cloud_event("a", n)).await.0, 202);
    }
    for service in [&one, &two] {
        eventually("it shows all that waits", async || {
            (waiting(service).await["rows"] == 30).then_some(())
        })
        .await;
        let shown = waiting(service).await;
        assert!(shown["counted_seconds_ago"].as_f64().unwrap() < 5.0, "{shown}");
        let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
        let age = metrics.lines().find_map(|line| {
            line.strip_prefix("agentarea_outbox_count_age_seconds ")?.parse::<f64>().ok()
        });
        assert!(age.is_some_and(|age| age < 5.0), "{age:?}");
    }
    let counters = "SELECT count(*) FROM roles WHERE name = 'counter'";
    assert_eq!(database.value(counters).await, 1);
    // Another takes over from the one that counts, whichever it is.
    drop(one);
    for n in 30..40 {
        assert_eq!(send_cloud_event(&two, &cloud_event("a", n)).await.0, 202);
    }
    eventually("the other counts", async || (waiting(&two).await["rows"] == 40).then_some(()))
        .await;
    drop(two);
    database.drop().await;
}

#[tokio::test]
async fn events_that_redis_refuses_become_dead_letters_and_block_nothing() {
    let redis = Redis::start_with(&["--proto-max-bulk-len", "1mb"]).await;
    let service = Setup::new()
        .variable("REDIS_URL", &redis.url())
        .set("server.max_body", "\"4MiB\"")
        .start()
        .await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let mut large = cloud_event("a", 0);
    large["data"] = json!("x".repeat(2 << 20));
    for event in [&large, &cloud_event("a", 1), &cloud_event("a", 2)] {
        assert_eq!(send_cloud_event(&service, event).await.0, 202);
    }
    assert_eq!(events.ids(2).await, ["a-1", "a-2"]);
    assert!(service.log().contains("it is a dead letter"), "{}", service.log());
    eventually("it is counted", async || {
        (metric(&service, "agentarea_dead_letters").await > 0.0).then_some(())
    })
    .await;
    let listed = service.json("/v1/dead-letters").await;
    let letter = &listed["items"][0];
    assert_eq!((&letter["event"]["id"], &letter["refusals"]), (&json!("a-0"), &json!(5)));
    let path = format!("/v1/dead-letters/{}", letter["id"].as_str().unwrap());

    let redis_admin = redis.url();
    let client = redis::Client::open(redis_admin).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let _done: () = redis::cmd("CONFIG")
        .arg(&["SET", "proto-max-bulk-len", "8mb"])
        .query_async(&mut connection)
        .await
        .unwrap();
    let reconnect = service.post("/v1/connections/event_broker/reconnect");
    assert_eq!(crate::support::answer(reconnect).await.0, 200);
    let redrive = service.post(&format!("{path}/redrive"));
    assert_eq!(crate::support::answer(redrive).await.0, 202);
    let mut arrived = events.ids(1).await;
    while arrived[0] != "a-0" {
        arrived = events.ids(1).await;
    }
    let again = service.http.delete(format!("{}{path}", service.base)).send().await.unwrap();
    assert_eq!(again.status(), 404, "it is none any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_killed_at_any_moment_loses_no_accepted_event() {
    let mut redis = Redis::start().await;
    let service = Setup::new().variable("REDIS_URL", &redis.url()).start().await;
    service.healthy().await;
    let ledger = Ledger::new(&[&service]);
    let mut service = Some(service);
    ledger
        .under_load(async {
            for round in 0..10 {
                ledger.more(20 + 7 * round).await;
                let killed = service.take().expect("it is started again").kill();
                if round % 3 == 2 {
                    redis.down();
                }
                let again = killed.start().await;
                ledger.send_to(&[&again]);
                service = Some(again);
                if round % 3 == 2 {
                    ledger.more(10).await;
                    redis.up().await;
                }
            }
            ledger.more(20).await;
        })
        .await;
    let service = service.expect("it is started again");
    service.healthy().await;
    ledger.check(&service).await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_replica_hears_of_what_another_accepted() {
    let redis = Redis::start().await;
    let database = crate::support::Database::create().await;
    // Polling alone would take longer than any test waits.
    let replica = || {
        Setup::new()
            .variable("REDIS_URL", &redis.url())
            .variable("DATABASE_URL", &database.url)
            .set("outbox.lease", "\"10m\"")
            .set("outbox.poll_interval", "\"1m\"")
    };
    let one = replica().start().await;
    one.healthy().await;
    eventually("one holds every lane", async || {
        let lanes = "SELECT count(*) FROM lanes WHERE owner IS NOT NULL";
        (database.value(lanes).await == 16).then_some(())
    })
    .await;
    let two = replica().start().await;
    two.healthy().await;
    eventually("one listens", async || {
        let ears = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' \
            AND datname = current_database()";
        (database.value(ears).await == 2).then_some(())
    })
    .await;
    let mut events = one.follow("", None).await;
    for n in 0..3 {
        assert_eq!(send_cloud_event(&two, &cloud_event("a", n)).await.0, 202);
    }
    assert_eq!(events.ids(3).await, ["a-0", "a-1", "a-2"]);
    drop((one, two));
    database.drop().await;
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn a_replica_cut_off_from_redis_leaves_its_lanes_to_the_others() {
    let redis = Redis::start().await;
    let database = crate::support::Database::create().await;
    let link = Link::to(redis.url().trim_start_matches("redis://")).await;
    let replica = |url: &str| {
        Setup::new()
            .variable("REDIS_URL", url)
            .variable("DATABASE_URL", &database.url)
            .set("event_broker.probe.interval", "\"500ms\"")
            .set("outbox.lease", "\"4s\"")
    };
    let cut_off = format!("redis://{}", link.address);
    let (cut_off, other) = tokio::join!(replica(&cut_off).start(), replica(&redis.url()).start());
    cut_off.healthy().await;
    other.healthy().await;
    let share_lanes = async || {
        let owners = "SELECT count(DISTINCT owner) FROM lanes";
        (database.value(owners).await == 2).then_some(())
    };
    eventually("they share the lanes", share_lanes).await;

    link.set(Passing::Cut);
    cut_off.health("the outage shows", |health| health["status"] != "healthy").await;
    let mut events = other.follow("", None).await;
    for subject in 0..32 {
        let event = cloud_event(&subject.to_string(), 0);
        assert_eq!(send_cloud_event(&cut_off, &event).await.0, 202);
    }
    assert_eq!(events.ids(32).await.len(), 32);

    link.set(Passing::Open);
    cut_off.healthy().await;
    eventually("they share the lanes again", share_lanes).await;
    drop((cut_off, other));
    database.drop().await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread")]
async fn replicas_take_over_from_one_that_is_killed_or_paused() {
    let redis = Redis::start().await;
    let database = crate::support::Database::create().await;
    let replica = || {
        Setup::new()
            .variable("REDIS_URL", &redis.url())
            .variable("DATABASE_URL", &database.url)
            .set("outbox.lease", "\"1s\"")
    };
    let (one, two) = tokio::join!(replica().start(), replica().start());
    one.healthy().await;
    two.healthy().await;
    let ledger = Ledger::new(&[&one, &two]);
    let mut one = Some(one);
    ledger
        .under_load(async {
            ledger.more(100).await;
            drop(one.take().expect("it runs").kill());
            ledger.send_to(&[&two]);
            ledger.more(100).await;
            let third = replica().start().await;
            third.healthy().await;
            ledger.send_to(&[&third, &two]);
            ledger.more(100).await;
            // On waking, it still believes in claims that others now hold.
            ledger.send_to(&[&third]);
            crate::support::signal(&two.child, "-STOP");
            let delivered = "agentarea_outbox_delivered_total";
            let before = metric(&third, delivered).await;
            ledger.more(200).await;
            eventually("the third hands over what the paused one held", async || {
                let waits = metric(&third, "agentarea_outbox_oldest_seconds").await;
                (waits < 1.0 && metric(&third, delivered).await > before + 150.0).then_some(())
            })
            .await;
            crate::support::signal(&two.child, "-CONT");
            ledger.more(100).await;
            one = Some(third);
        })
        .await;
    ledger.check(&two).await;
    drop((one, two));
    database.drop().await;
}
