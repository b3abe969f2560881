//! Executions, on the embedded execution service.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use poem::{
    EndpointExt, IntoResponse, Request, Response, Route, Server, handler,
    http::StatusCode,
    listener::{Acceptor, Listener, TcpListener},
    web::Data,
};
use serde_json::{Value, json};

use crate::support::{Service, Setup, answer, eventually};

/// A service for workflows of kind `http`: ignores and fails a given number of requests, then
/// answers.
#[derive(Clone, Default)]
struct Remote {
    calls: Arc<AtomicUsize>,
    fail_first: usize,
    never_answer_first: usize,
    keys: Arc<std::sync::OnceLock<String>>,
    trace: Arc<std::sync::OnceLock<String>>,
}

#[handler]
async fn answer_call(request: &Request, body: String, remote: Data<&Remote>) -> Response {
    let call = remote.calls.fetch_add(1, Ordering::SeqCst);
    let key = request.header("idempotency-key").unwrap_or_default().to_owned();
    let first = remote.keys.get_or_init(|| key.clone());
    assert_eq!(*first, key, "every try of an execution sends the same key");
    let trace = request.header("traceparent").expect("a step names its trace");
    remote.trace.get_or_init(|| trace.to_owned());
    if call < remote.never_answer_first {
        std::future::pending::<()>().await;
    }
    if call < remote.fail_first {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Response::builder().content_type("application/json").body(format!("{{\"got\":{body}}}"))
}

impl Remote {
    /// Serves in the background; returns the URL.
    async fn serve(&self) -> String {
        let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await.unwrap();
        let address = acceptor.local_addr()[0].as_socket_addr().unwrap().to_owned();
        let app = Route::new().at("/", poem::post(answer_call)).data(self.clone());
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(Server::new_with_acceptor(acceptor).run(app));
        format!("http://{address}/")
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn workflow(setup: Setup, url: &str) -> Setup {
    setup
        .set("workflows.call.kind", "\"http\"")
        .set("workflows.call.url", &format!("\"{url}\""))
        .set("workflows.call.retry.initial_backoff", "\"10ms\"")
}

#[tokio::test]
async fn a_step_belongs_to_the_trace_of_the_request_that_asked_for_it() {
    let remote = Remote::default();
    let service = workflow(Setup::new(), &remote.serve().await).start().await;
    service.healthy().await;
    let mut events = service.follow("?type=execution.*", None).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = service
        .post("/v1/executions")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"))
        .json(&json!({"workflow": "call", "input": 1}));
    let (_, accepted) = answer(request).await;
    service.result(accepted["id"].as_str().unwrap()).await;
    let sent = remote.trace.get().unwrap();
    let belongs = |traceparent: &str| traceparent.starts_with(&format!("00-{trace}-"));
    assert!(belongs(sent) && sent.ends_with("-01"), "{sent}");
    let event = events.next().await.data;
    assert!(belongs(event["traceparent"].as_str().unwrap()), "{event}");
}

#[tokio::test]
async fn an_echo_completes_with_its_input_and_is_announced() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("?type=execution.*", None).await;
    let input = json!({"text": "ünïcödé", "n": [1, null, 2.5]});
    let request = service.post("/v1/executions").json(&json!({"workflow": "echo", "input": input}));
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let accepted: Value = response.json().await.unwrap();
    assert_eq!(location, format!("/v1/executions/{}", accepted["id"].as_str().unwrap()));
    assert!(accepted["created_at"].as_str().unwrap().ends_with('Z'));

    let ended = service.result(accepted["id"].as_str().unwrap()).await;
    assert_eq!(ended["status"], "completed");
    assert_eq!(ended["result"], input);
    assert_eq!(ended["input"], input);
    for expected in ["execution.accepted", "execution.started", "execution.completed"] {
        let event = events.next().await.data;
        assert_eq!(event["type"], expected);
        assert_eq!(event["subject"], accepted["id"]);
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_execution_or_at_its_timeout() {
    let service = Setup::new().set("workflows.slow.delay", "\"10m\"").start().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "slow"})).await;
    let waited = service.json(&format!("/v1/executions/{id}?wait=100ms")).await;
    assert!(["accepted", "running"].contains(&waited["status"].as_str().unwrap()), "{waited}");
    let path = format!("/v1/executions/{id}?wait=60s");
    let waiting = service.json(&path);
    let cancelling = service.post(&format!("/v1/executions/{id}/cancel")).send();
    let (waited, cancelled) = tokio::join!(waiting, cancelling);
    assert_eq!(cancelled.unwrap().status(), 202);
    assert_eq!(waited["status"], "cancelled");
}

#[tokio::test]
async fn an_idempotency_key_starts_one_execution() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let start = |key: &'static str, input: Value| {
        let body = json!({"workflow": "echo", "input": input});
        answer(service.post("/v1/executions").header("Idempotency-Key", key).json(&body))
    };
    let at_once = futures_util::future::join_all((0..20).map(|_| start("\"k-1\"", json!(1)))).await;
    let (status, first) = &at_once[0];
    assert_eq!(*status, 202, "{first}");
    assert!(at_once.iter().all(|answer| answer == &at_once[0]), "{at_once:?}");
    // The same key in its bare form, and later.
    assert_eq!(start("k-1", json!(1)).await, at_once[0]);

    let (status, problem) = start("k-1", json!(2)).await;
    assert_eq!(status, 422);
    assert!(problem["type"].as_str().unwrap().ends_with("idempotency-key-reused"));
    assert_eq!(start("", json!(1)).await.0, 400);
    assert_eq!(service.json("/v1/executions").await["items"].as_array().unwrap().len(), 1);

    // The key outlives the process.
    let service = service.kill().start().await;
    service.healthy().await;
    let body = json!({"workflow": "echo", "input": 1});
    let again =
        answer(service.post("/v1/executions").header("Idempotency-Key", "k-1").json(&body)).await;
    assert_eq!(again, at_once[0]);
}

#[tokio::test]
async fn bad_input_is_refused_and_nothing_is_stored() {
    let service = Setup::new().start().await;
    service.healthy().await;
    for (body, expected) in [
        (json!({"workflow": "nope"}), 422),
        (json!({"input": 1}), 400),
        (json!({"workflow": "echo", "unknown": 1}), 400),
        (json!({"workflow": "echo", "id": "with space"}), 422),
        (json!({"workflow": "echo", "timeout": "soon"}), 400),
    ] {
        let (status, problem) = service.send("/v1/executions", &body).await;
        assert_eq!(status, expected, "{body}: {problem}");
    }
    for path in
        ["/v1/executions?cursor=nonsense", "/v1/executions?limit=0", "/v1/executions?status=x"]
    {
        assert_eq!(service.get(path).send().await.unwrap().status(), 400, "{path}");
    }
    for path in ["/v1/executions/unknown", "/v1/executions/01a208ce-9ad6-735b-a656-228086026c77"] {
        assert_eq!(service.get(path).send().await.unwrap().status(), 404, "{path}");
    }
    for action in ["cancel", "terminate", "signals/x", "queries/x"] {
        let path = format!("/v1/executions/unknown/{action}");
        assert_eq!(service.post(&path).send().await.unwrap().status(), 404, "{path}");
    }
    assert_eq!(service.json("/v1/executions").await["items"], json!([]));

    let id = service.execute(&json!({"workflow": "echo", "id": "mine"})).await;
    assert_eq!(id, "mine");
    let (status, _) =
        service.send("/v1/executions", &json!({"workflow": "echo", "id": "mine"})).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn lists_are_newest_first_and_paged() {
    let service = Setup::new().set("workflows.other.kind", "\"echo\"").start().await;
    service.healthy().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.insert(0, service.execute(&json!({"workflow": "echo", "input": n})).await);
    }
    service.execute(&json!({"workflow": "other"})).await;
    let mut seen = Vec::new();
    let mut path = "/v1/executions?workflow=echo&limit=2".to_owned();
    loop {
        let page = service.json(&path).await;
        for item in page["items"].as_array().unwrap() {
            seen.push(item["id"].as_str().unwrap().to_owned());
        }
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/executions?workflow=echo&limit=2&cursor={cursor}");
    }
    assert_eq!(seen, ids);
    for id in &ids {
        service.result(id).await;
    }
    let completed = service.json("/v1/executions?status=completed&workflow=echo").await;
    assert_eq!(completed["items"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn an_execution_ends_by_force_by_time_or_by_failure() {
    let remote = Remote { fail_first: usize::MAX, ..Remote::default() };
    let setup = Setup::new().set("workflows.slow.delay", "\"10m\"");
    let setup =
        workflow(setup, &remote.serve().await).set("workflows.call.retry.max_attempts", "2");
    let service = setup.start().await;
    service.healthy().await;

    let id = service.execute(&json!({"workflow": "slow"})).await;
    let (status, _) =
        service.send(&format!("/v1/executions/{id}/terminate"), &json!({"reason": "enough"})).await;
    assert_eq!(status, 202);
    let ended = service.result(&id).await;
    assert_eq!((&ended["status"], &ended["error"]), (&json!("terminated"), &json!("enough")));
    for action in ["cancel", "terminate"] {
        let again = service.post(&format!("/v1/executions/{id}/{action}")).send().await.unwrap();
        assert_eq!(again.status(), 409);
    }

    let id = service.execute(&json!({"workflow": "slow", "timeout": "100ms"})).await;
    assert_eq!(service.result(&id).await["status"], "timed_out");

    let id = service.execute(&json!({"workflow": "call"})).await;
    let ended = service.result(&id).await;
    assert_eq!(ended["status"], "failed");
    assert!(ended["error"].as_str().unwrap().contains("503"), "{ended}");
    assert_eq!(remote.calls(), 2);

    let id = service.execute(&json!({"workflow": "slow"})).await;
    for path in [format!("/v1/executions/{id}/signals/x"), format!("/v1/executions/{id}/queries/x")]
    {
        let (status, problem) = answer(service.post(&path)).await;
        assert_eq!(status, 501, "{problem}");
    }
}

#[tokio::test]
async fn an_http_step_is_tried_again_until_it_answers() {
    let remote = Remote { fail_first: 2, ..Remote::default() };
    let service = workflow(Setup::new(), &remote.serve().await).start().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "call", "input": {"a": 1}})).await;
    let ended = service.result(&id).await;
    assert_eq!(ended["result"], json!({"got": {"a": 1}}), "{ended}");
    assert_eq!(remote.calls(), 3);
}

#[tokio::test]
async fn executions_running_when_the_process_died_continue_after_its_restart() {
    let remote = Remote { never_answer_first: 1, ..Remote::default() };
    let setup = workflow(Setup::new(), &remote.serve().await);
    let service = setup.set("workflows.slow.delay", "\"10m\"").start().await;
    service.healthy().await;
    let id = service.execute(&json!({"workflow": "call"})).await;
    let slow = service.execute(&json!({"workflow": "slow", "timeout": "2s"})).await;
    eventually("the step has begun", async || (remote.calls() == 1).then_some(())).await;

    let service = service.kill().start().await;
    assert_eq!(service.result(&id).await["status"], "completed");
    assert_eq!(remote.calls(), 2, "the step that was cut off was tried once more");
    // Its timeout continued while nothing ran.
    assert_eq!(service.result(&slow).await["status"], "timed_out");
    listed_once(&service, &id).await;
}

async fn listed_once(service: &Service, id: &str) {
    let list = service.json("/v1/executions").await;
    let found = list["items"].as_array().unwrap().iter().filter(|item| item["id"] == id).count();
    assert_eq!(found, 1);
}

#[cfg(all(feature = "redis", feature = "postgres"))]
#[tokio::test]
async fn embedded_runs_of_a_replica_that_is_killed_are_ended_by_another() {
    let (redis, database) =
        tokio::join!(crate::support::Redis::start(), crate::support::Database::create());
    let start = || {
        Setup::new()
            .variable("REDIS_URL", &redis.url())
            .variable("DATABASE_URL", &database.url)
            .set("workflows.slow.delay", "\"3s\"")
            .set("executions.lease", "\"2s\"")
            .set("execution_service.embedded.lease", "\"2s\"")
            .set("execution_service.embedded.poll_interval", "\"100ms\"")
            .start()
    };
    let (one, two) = tokio::join!(start(), start());
    tokio::join!(one.healthy(), two.healthy());
    let mut ids = Vec::new();
    // A replica claims every run it finds, so the faster one may have claimed them all.
    eventually("both run some", async || {
        for accepts in [&one, &two] {
            ids.push(accepts.execute(&json!({"workflow": "slow"})).await);
        }
        let owners = "SELECT count(DISTINCT owner) FROM runs WHERE status = 'running'";
        (database.value(owners).await == 2).then_some(())
    })
    .await;
    drop(one.kill());
    for id in &ids {
        assert_eq!(two.result(id).await["status"], "completed");
    }
    drop(two);
    database.drop().await;
}
