//! An execution service that asks for fewer calls.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::support::{Service, Setup, eventually, gateway::Gateway, http_client, variable};

/// The time for which starts are refused, in the short form; `THROTTLED_SECONDS` makes it longer.
const THROTTLED: Duration = Duration::from_secs(8);
/// The pause of a client between two executions, of which a small server starts some.
const PAUSE: Duration = Duration::from_millis(200);

fn throttled_for() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the test's own, no configuration")]
    let seconds = std::env::var("THROTTLED_SECONDS").ok();
    seconds.map_or(THROTTLED, |seconds| Duration::from_secs(seconds.parse().expect("seconds")))
}

/// Starts executions until `stop`, each of which must be accepted. Returns how many.
async fn start_executions(base: String, stop: CancellationToken) -> u32 {
    let http = http_client().build().unwrap();
    let mut accepted = 0;
    while !stop.is_cancelled() {
        let request = http.post(format!("{base}/v1/executions")).json(&json!({"workflow": "echo"}));
        assert_eq!(request.send().await.unwrap().status(), 202);
        accepted += 1;
        sleep(PAUSE).await;
    }
    accepted
}

/// The value of the one series that begins so.
async fn series(service: &Service, name: &str) -> f64 {
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name}: {metrics}")).trim().parse().unwrap()
}

async fn started(service: &Service) -> f64 {
    series(service, r#"agentarea_outbox_delivered_total{destination="execution_service"}"#).await
}

#[tokio::test]
async fn a_service_that_asks_for_fewer_calls_gets_fewer_and_then_all_and_nothing_is_rejected() {
    let gateway = Gateway::before(&variable("TEST_TEMPORAL_ADDRESS")).await;
    let service = Setup::new()
        .variable("TEMPORAL_ADDRESS", &gateway.address)
        .variable("TEMPORAL_TASK_QUEUE", &format!("it-{}", uuid::Uuid::now_v7()))
        .set("execution_service.probe.timeout", "\"400ms\"")
        .start()
        .await;
    service.healthy().await;
    let (stop, mut clients) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..4 {
        clients.spawn(start_executions(service.base.clone(), stop.clone()));
    }
    eventually("executions start", async || (started(&service).await >= 20.0).then_some(())).await;

    gateway.refuse_starts(true);
    let begin = Instant::now();
    let breaker =
        r#"agentarea_circuit_breaker_state{connection="execution_service",state="closed"}"#;
    while begin.elapsed() < throttled_for() {
        assert!(series(&service, breaker).await > 0.0, "a request for fewer calls is no failure");
        sleep(Duration::from_millis(100)).await;
    }
    let before = started(&service).await;
    gateway.refuse_starts(false);
    let recovered = Instant::now();
    eventually("they start again", async || {
        (started(&service).await >= before + 20.0).then_some(())
    })
    .await;
    println!("20 were started {:?} after the last refusal", recovered.elapsed());
    stop.cancel();
    let accepted = f64::from(clients.join_all().await.into_iter().sum::<u32>());
    eventually("all are started", async || (started(&service).await >= accepted).then_some(()))
        .await;
    let refused = series(
        &service,
        r#"agentarea_call_errors_total{connection="execution_service",class="throttled"}"#,
    )
    .await;
    assert!(refused > 0.0, "it was asked for fewer calls");
    let letters: Value = service.json("/v1/dead-letters").await;
    assert_eq!(letters["items"], json!([]));
    service.healthy().await;
}
