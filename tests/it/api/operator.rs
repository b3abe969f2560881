//! The operator's routes: reconnect, circuit breaker, reload.

use serde_json::json;

use crate::support::{Service, Setup, answer, eventually, signal};

#[tokio::test]
async fn a_reconnect_makes_the_connection_anew() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "echo", "input": 1})).await;
    for name in ["event_broker", "execution_service", "database"] {
        let (status, answer) =
            answer(service.post(&format!("/v1/connections/{name}/reconnect"))).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["connection"]["reuse"]["rebuilds"], 1, "{answer}");
        assert_eq!(answer["instance"], service.json("/health").await["instance"]);
    }
    assert_eq!(service.result(&id).await["result"], 1, "what was accepted is still there");
    let (status, problem) = answer(service.post("/v1/connections/x/reconnect")).await;
    assert_eq!(status, 404, "{problem}");
}

#[tokio::test]
async fn a_forced_breaker_refuses_until_it_is_automatic_again() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let breaker = "/v1/connections/event_broker/circuit-breaker";
    let force = |state: &str| answer(service.put(breaker).json(&json!({"state": state})));
    let (status, answered) = force("forced_open").await;
    assert_eq!((status.as_u16(), &answered["connection"]["circuit"]), (200, &json!("forced_open")));
    let event = json!({"type": "x"});
    let refused = service.post("/v1/events?delivery=direct").json(&event).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let health = service.json("/health").await;
    assert_eq!(health["status"], "degraded", "a breaker that is not closed shows");

    // A reload keeps it, because an operator's decision outlasts a change of a file.
    let (status, _) = answer(service.post("/v1/config/reload")).await;
    assert_eq!(status, 200);
    assert_eq!(service.send("/v1/events?delivery=direct", &event).await.0, 503);

    assert_eq!(force("automatic").await.1["connection"]["circuit"], "closed");
    assert_eq!(service.send("/v1/events?delivery=direct", &event).await.0, 200);
    service.healthy().await;
    let connection = service.json("/v1/connections/event_broker").await;
    let changes: Vec<(&str, &str)> = connection["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|change| change["subject"] == "circuit_breaker")
        .map(|change| (change["from"].as_str().unwrap(), change["to"].as_str().unwrap()))
        .collect();
    assert_eq!(changes, [("closed", "forced_open"), ("forced_open", "closed")]);

    let (status, problem) = force("ajar").await;
    assert_eq!(status, 400, "{problem}");
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let rejected =
        r#"agentarea_call_rejected_total{connection="event_broker",reason="circuit_open"} 2"#;
    assert!(metrics.contains(rejected), "{metrics}");
}

#[tokio::test]
async fn a_reload_applies_what_can_change_and_names_what_cannot() {
    let setup = Setup::new();
    setup.write_config("[event_broker.timeout]\ntotal = \"9s\"\n");
    let service = setup.start().await;
    service.healthy().await;
    service.write_config(
        "[event_broker.timeout]\ntotal = \"8s\"\n[database.pool]\nmax_size = 3\n\
         [database.sqlite]\npath = \"data/other.db\"\n[event_stream]\nmax_clients = 5\n",
    );
    let (status, reloaded) = answer(service.post("/v1/config/reload")).await;
    assert_eq!(status, 200, "{reloaded}");
    assert_eq!(
        reloaded["applied"],
        json!(["database.pool.max_size", "event_broker.timeout.total"])
    );
    assert_eq!(
        reloaded["needs_restart"],
        json!(["database.sqlite.path", "event_stream.max_clients"])
    );
    assert_eq!(reloaded["rebuilt"], json!(["database"]));
    let database = service.json("/v1/connections/database").await;
    assert_eq!(database["pool"]["max"], 3);
    assert!(!service.path().join("data/other.db").exists());

    let (_, again) = answer(service.post("/v1/config/reload")).await;
    assert_eq!(again["applied"], json!([]));
    assert_eq!(again["needs_restart"], reloaded["needs_restart"], "they still wait");
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing_and_names_the_key() {
    let setup = Setup::new();
    setup.write_config("");
    let service = setup.start().await;
    service.healthy().await;
    service.write_config("[database.pool]\nmax_size = 3\n[event_broker.retry]\nmax_atempts = 2\n");
    let (status, problem) = answer(service.post("/v1/config/reload")).await;
    assert_eq!(status, 422, "{problem}");
    let wrong = &problem["configuration"][0];
    assert_eq!(wrong["key"], "event_broker.retry.max_atempts");
    assert_eq!(wrong["suggestion"], "event_broker.retry.max_attempts");
    assert!(wrong["place"].as_str().unwrap().ends_with("development.toml:4"), "{wrong}");
    let database = service.json("/v1/connections/database").await;
    assert_eq!((&database["pool"]["max"], &database["reuse"]["rebuilds"]), (&json!(10), &json!(0)));
}

#[tokio::test]
async fn sighup_reads_the_configuration_again() {
    let setup = Setup::new();
    setup.write_config("");
    let service = setup.start().await;
    service.healthy().await;
    service.write_config("[database.pool]\nmax_size = 4\n");
    signal(&service.child, "-HUP");
    eventually("the pool has its new size", async || {
        let database = service.json("/v1/connections/database").await;
        (database["pool"]["max"] == 4).then_some(())
    })
    .await;
    service.write_config("[database.pool]\nmax_size = 0\n");
    signal(&service.child, "-HUP");
    eventually("the problem is logged", async || {
        service.log().contains("database.pool.max_size").then_some(())
    })
    .await;
    service.healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_fail_no_request() {
    let setup = Setup::new();
    #[cfg(feature = "redis")]
    let redis = crate::support::Redis::start().await;
    #[cfg(feature = "redis")]
    let setup = setup.variable("REDIS_URL", &redis.url());
    reload_under_load(setup, 100).await;
}

/// One request of each kind.
async fn use_everything(service: &Service, input: usize) {
    let event = json!({"type": "x"});
    let (status, said) = service.send("/v1/events", &event).await;
    assert_eq!(status, 202, "{said}");
    let (status, said) = service.send("/v1/events?delivery=direct", &event).await;
    assert_eq!(status, 200, "{said}");
    let id = service.execute(&json!({"workflow": "echo", "input": input})).await;
    for path in [&*format!("/v1/executions/{id}"), "/v1/executions?limit=1"] {
        let (status, said) = answer(service.get(path)).await;
        assert_eq!(status, 200, "{said}");
    }
}

/// Every reload rebuilds all three connections while requests arrive as fast as they are served.
pub(crate) async fn reload_under_load(setup: Setup, rounds: u32) {
    setup.write_config("");
    // A new backend is probed while four clients keep the machine busy.
    let setup =
        ["event_broker", "execution_service", "database"].iter().fold(setup, |setup, name| {
            let setup = setup.set(&format!("{name}.probe.interval"), "\"5s\"");
            setup.set(&format!("{name}.probe.timeout"), "\"10s\"")
        });
    // A disk that stalls for a while is not a failure of the reload.
    let setup = setup
        .set("database.pool.acquire_timeout", "\"20s\"")
        .set("database.timeout", "{ attempt = \"25s\", total = \"25s\" }");
    let service = setup.start().await;
    service.healthy().await;
    let reloading = tokio_util::sync::CancellationToken::new();
    let publish = || async {
        let mut served = 0;
        while !reloading.is_cancelled() {
            use_everything(&service, served).await;
            served += 1;
        }
        served
    };
    let reload = async {
        for round in 0..rounds {
            let size = 5 + round % 2;
            service.write_config(&format!(
                "[event_broker.pool]\nmax_size = {size}\n[database.pool]\nmax_size = {size}\n\
                 [execution_service.pool]\nmax_size = {size}\n"
            ));
            let (status, reloaded) = answer(service.post("/v1/config/reload")).await;
            assert_eq!(status, 200, "{reloaded}");
            assert_eq!(
                reloaded["rebuilt"],
                json!(["database", "event_broker", "execution_service"])
            );
        }
        reloading.cancel();
    };
    let (one, two, three, four, ()) =
        tokio::join!(publish(), publish(), publish(), publish(), reload);
    assert!(
        [one, two, three, four].iter().all(|served| *served > 10),
        "{one} {two} {three} {four}"
    );
    service.healthy().await;
}

#[cfg(feature = "redis")]
mod with_redis {
    use super::*;
    use crate::support::{Redis, free_port};

    fn broker_at(url: &str, pool: u32) -> String {
        format!(
            "[event_broker]\nbackend = \"redis\"\n[event_broker.redis]\nurl = \"{url}\"\n\
             [event_broker.pool]\nmax_size = {pool}\n"
        )
    }

    #[tokio::test]
    async fn a_reload_whose_connection_cannot_be_made_leaves_the_old_one_serving() {
        let redis = Redis::start().await;
        let setup = Setup::new();
        setup.write_config(&broker_at(&redis.url(), 5));
        let service = setup.start().await;
        service.healthy().await;
        let publishes = async || {
            let direct = "/v1/events?delivery=direct";
            let (status, answer) = service.send(direct, &json!({"type": "x"})).await;
            assert_eq!(status, 200, "{answer}");
        };
        publishes().await;

        service.write_config(&broker_at(&format!("redis://127.0.0.1:{}", free_port()), 6));
        let (status, problem) = answer(service.post("/v1/config/reload")).await;
        assert_eq!(status, 503, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        for word in ["event_broker.redis.url", "refused", "nothing was changed"] {
            assert!(detail.contains(word), "{word} is missing in {detail}");
        }
        publishes().await;
        let broker = service.json("/v1/connections/event_broker").await;
        assert_eq!(broker["pool"]["max"], 5, "{broker}");
        assert_eq!(broker["reuse"]["rebuilds"], 0, "{broker}");
        let health = service.json("/health").await;
        assert_eq!(health["status"], "healthy", "{health}");
        assert_eq!(health["connections"]["connection_reuse"], true, "{health}");

        service.write_config(&broker_at(&redis.url(), 7));
        let (status, reloaded) = answer(service.post("/v1/config/reload")).await;
        assert_eq!((status.as_u16(), &reloaded["rebuilt"]), (200, &json!(["event_broker"])));
        publishes().await;
        assert_eq!(service.json("/v1/connections/event_broker").await["pool"]["max"], 7);
    }

    #[tokio::test]
    async fn the_timeline_tells_cause_class_and_length_of_an_outage() {
        let mut redis = Redis::start().await;
        let service = Setup::new()
            .variable("REDIS_URL", &redis.url())
            .set("event_broker.circuit_breaker.minimum_calls", "1")
            .start()
            .await;
        service.healthy().await;
        let up = std::time::Instant::now();
        redis.down();
        let event = json!({"type": "x"});
        eventually("the breaker opens", async || {
            service.send("/v1/events?delivery=direct", &event).await;
            let broker = service.json("/v1/connections/event_broker").await;
            (broker["circuit"] == "open").then_some(())
        })
        .await;
        let services = |health: &serde_json::Value| health["connections"]["services"].clone();
        let unavailable =
            |health: &serde_json::Value| services(health)["event_broker"] == "unavailable";
        service.health("the outage shows", unavailable).await;
        redis.up().await;
        service.healthy().await;
        let at_most = up.elapsed();

        let broker = service.json("/v1/connections/event_broker").await;
        let timeline = broker["timeline"].as_array().unwrap();
        let change = |subject: &str, to: &str| {
            let of_it =
                |change: &&serde_json::Value| change["subject"] == subject && change["to"] == to;
            timeline.iter().rfind(of_it).unwrap_or_else(|| panic!("{subject} {to}: {timeline:?}"))
        };
        let lost = change("connection", "unavailable");
        assert_eq!(lost["from"], "initialized");
        assert_eq!(lost["cause"], "probe failed");
        let class = lost["error_class"].as_str().unwrap();
        assert!(["refused", "disconnected", "timeout"].contains(&class), "{lost}");
        let found = change("connection", "initialized");
        assert_eq!((&found["cause"], found.get("error_class")), (&json!("recovered"), None));
        let lasted = u128::from(found["duration_ms"].as_u64().unwrap());
        assert!((1..=at_most.as_millis()).contains(&lasted), "{found} of {at_most:?}");
        let opened = change("circuit_breaker", "open");
        assert!(opened["cause"].as_str().unwrap().ends_with("calls failed"), "{opened}");
        assert!(opened["error_class"].is_string(), "{opened}");
        let times: Vec<&str> =
            timeline.iter().map(|change| change["at"].as_str().unwrap()).collect();
        assert!(times.is_sorted(), "oldest first: {times:?}");
    }

    #[tokio::test]
    async fn calls_beyond_the_concurrency_limit_are_refused_with_retry_after() {
        let redis = Redis::start().await;
        let service = Setup::new()
            .variable("REDIS_URL", &redis.url())
            .set("event_broker.concurrency", "{ max_in_flight = 1, max_waiting = 0 }")
            .set("event_broker.circuit_breaker.half_open_calls", "1")
            // Long enough for the other to be refused, even on a busy machine.
            .set("event_broker.timeout", "{ attempt = \"20s\", total = \"20s\" }")
            .set("event_broker.probe.interval", "\"10m\"")
            .start()
            .await;
        service.healthy().await;
        redis.freeze(true);
        let direct = || service.post("/v1/events?delivery=direct").json(&json!({"type": "x"}));
        let hangs = answer(direct());
        let refused = async {
            eventually("a call hangs", async || {
                let broker = service.json("/v1/connections/event_broker").await;
                (broker["reuse"]["in_use"].as_u64() > Some(0)).then_some(())
            })
            .await;
            direct().send().await.unwrap()
        };
        let refused = tokio::select! {
            (status, problem) = hangs => panic!("the first one was answered {status}: {problem}"),
            refused = refused => refused,
        };
        crate::support::is_overloaded(refused).await;
        redis.freeze(false);
    }
}
