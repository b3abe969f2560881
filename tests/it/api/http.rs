//! Features of every route: problems, limits, request ids, the specification, the accept loop.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{DEADLINE, Setup, answer};

#[tokio::test]
async fn refusals_are_problems_with_the_request_id() {
    let service = Setup::new().set("server.max_body", "1KiB").start().await;
    service.healthy().await;
    let long = json!({"type": "x", "data": "y".repeat(2000)}).to_string();
    let json_body = |body: String| {
        service.post("/v1/events").header("content-type", "application/json").body(body)
    };
    let stream = futures_util::stream::once(async move { Ok::<_, std::io::Error>(long.clone()) });
    let chunked = service
        .post("/v1/events")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(stream));
    let declared = json_body(json!({"type": "x", "data": "y".repeat(2000)}).to_string());
    for (request, expected) in [
        (service.get("/nowhere"), 404),
        (service.http.delete(format!("{}/v1/executions", service.base)), 405),
        (json_body("{".to_owned()), 400),
        (declared, 413),
        (chunked, 413),
    ] {
        let response = request.header("x-request-id", "my-id").send().await.unwrap();
        assert_eq!(response.status(), expected);
        assert_eq!(response.headers()["x-request-id"], "my-id");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        if expected == 405 {
            assert_eq!(response.headers()["allow"], "GET, POST");
        }
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["status"], expected);
        assert_eq!(problem["request_id"], "my-id");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:agentarea:problem:"));
    }
    let hostile = service.get("/health").header("x-request-id", "a b".repeat(100));
    let given =
        hostile.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(given.len(), 36, "an id that is not sane is replaced: {given}");
}

#[tokio::test]
async fn the_specification_names_every_route_that_is_on() {
    let service = Setup::new().start().await;
    let document = service.json("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    for path in ["/health", "/v1/events", "/v1/events/stream", "/v1/executions/{id}", "/metrics"] {
        assert!(paths.contains_key(path), "{path} is missing");
    }
    let publish = &document["paths"]["/v1/events"]["post"];
    assert_eq!(publish["requestBody"]["content"].as_object().unwrap().len(), 3);
    for status in ["200", "202", "400", "401", "413", "415", "422", "503"] {
        assert!(publish["responses"].get(status).is_some(), "{status} is missing");
    }
    let page = service.get("/docs").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("SwaggerUIBundle"));
    assert!(page.contains("listConnections"), "Swagger UI shows the completed specification");
    let yaml = service.get("/openapi.yaml").send().await.unwrap().text().await.unwrap();
    let yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(yaml, document);
    let page = service.get("/").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("event_broker"));
}

#[tokio::test]
async fn a_feature_that_is_off_answers_404_and_leaves_the_specification() {
    let features = ["status_page", "event_stream", "direct_delivery", "operator_api", "metrics"];
    let setup = features
        .iter()
        .fold(Setup::new(), |setup, name| setup.set(&format!("features.{name}"), "false"));
    let service = setup.start().await;
    service.healthy().await;
    for path in
        ["/", "/v1/events/stream", "/v1/connections", "/v1/connections/database", "/metrics"]
    {
        assert_eq!(service.get(path).send().await.unwrap().status(), 404, "{path}");
    }
    let (status, _) = service.send("/v1/events?delivery=direct", &json!({"type": "x"})).await;
    assert_eq!(status, 404);
    let document = service.json("/openapi.json").await;
    for path in ["/v1/events/stream", "/v1/connections", "/metrics"] {
        assert!(document["paths"].get(path).is_none(), "{path} is still there");
    }
    let service = Setup::new().set("features.docs", "false").start().await;
    for path in ["/docs", "/openapi.json", "/openapi.yaml"] {
        assert_eq!(service.get(path).send().await.unwrap().status(), 404, "{path}");
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let service = Setup::new().set("server.header_timeout", "\"300ms\"").start().await;
    let address = service.base.trim_start_matches("http://");
    for sent in ["", "GET /health HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let cut = timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "{sent:?} was left open");
    }
    service.healthy().await;
}

/// The next answer on a connection.
async fn next_answer(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let whole = async {
        loop {
            stream.read_buf(&mut read).await.unwrap();
            let text = String::from_utf8_lossy(&read).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse().unwrap() {
                return text;
            }
        }
    };
    timeout(DEADLINE, whole).await.expect("an answer comes")
}

#[tokio::test]
async fn a_client_refused_while_sending_reads_the_answer_and_continues() {
    let service = Setup::new().start().await;
    let address = service.base.trim_start_matches("http://");
    let body = "x".repeat(3 << 20);
    for (path, expected) in [("/v1/events", 413), ("/nowhere", 404)] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = next_answer(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{answer}");
        stream.write_all(body.as_bytes()).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let answer = next_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_refused_body_is_not_read_without_end() {
    let service = Setup::new().set("server.max_body", "1KiB").start().await;
    let address = service.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let broken = async { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} };
    timeout(DEADLINE, broken).await.expect("the connection ends");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_is_refused_before_its_body() {
    let service = Setup::new().start().await;
    let address = service.base.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 3000000\r\n\
                expect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut read = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut read)).await.expect("it ends").unwrap();
    assert!(read.starts_with("HTTP/1.1 413"), "{read}");
}

#[tokio::test]
async fn clients_beyond_the_limit_wait_for_a_place() {
    let service = Setup::new().set("server.max_connections", "2").start().await;
    let address = service.base.trim_start_matches("http://").to_owned();
    let held =
        [TcpStream::connect(&address).await.unwrap(), TcpStream::connect(&address).await.unwrap()];
    let mut third = TcpStream::connect(&address).await.unwrap();
    third.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    let early = timeout(Duration::from_millis(200), third.read_exact(&mut answer)).await;
    assert!(early.is_err(), "the third client was served while two held their places");
    drop(held);
    timeout(DEADLINE, third.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.0 200");
}

#[tokio::test]
async fn metrics_count_requests_by_route_and_nothing_else() {
    let service = Setup::new().start().await;
    service.healthy().await;
    for n in 0..3 {
        let _gone = service.get(&format!("/v1/executions/unknown-{n}")).send().await.unwrap();
        let _gone = service.get(&format!("/nowhere/{n}")).send().await.unwrap();
    }
    let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    for line in [
        r#"agentarea_http_requests_total{method="GET",route="/v1/executions/{id}",status="404"} 3"#,
        r#"agentarea_http_requests_total{method="GET",route="other",status="404"} 3"#,
        r#"agentarea_connection_up{connection="database"} 1"#,
        r#"agentarea_connection_builds_total{connection="database",outcome="success"} 1"#,
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[tokio::test]
async fn log_lines_of_a_request_carry_its_ids() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let service = Setup::new()
        .set("telemetry.log_format", "\"json\"")
        .set("telemetry.log_filter", "\"debug\"")
        .start()
        .await;
    let request = service
        .get("/livez")
        .header("x-request-id", "find-me")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(answer(request).await.0, 200);
    let line = crate::support::eventually("the request is logged", async || {
        service.log().lines().find(|line| line.contains("find-me")).map(str::to_owned)
    })
    .await;
    let line: Value = serde_json::from_str(&line).expect("every line is JSON");
    assert_eq!(line["span"]["request_id"], "find-me");
    assert_eq!(line["span"]["trace_id"], trace);
}

#[tokio::test]
async fn an_event_is_part_of_the_trace_that_published_it() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let mut events = service.follow("", None).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let publish = |event: Value| {
        let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
        answer(service.post("/v1/events").header("traceparent", traceparent).json(&event))
    };
    assert_eq!(publish(json!({"type": "x"})).await.0, 202);
    let traceparent = events.next().await.data["traceparent"].as_str().unwrap().to_owned();
    assert!(traceparent.starts_with(&format!("00-{trace}-")), "{traceparent}");
    assert!(!traceparent.contains("00f067aa0ba902b7"), "its parent is the service's own span");
}

/// The detail of the problem with which a request is refused.
async fn refused(request: reqwest::RequestBuilder, expected: u16) -> String {
    let (status, problem) = answer(request).await;
    assert_eq!(status, expected, "{problem}");
    problem["detail"].as_str().unwrap_or_else(|| panic!("{problem} has no detail")).to_owned()
}

#[tokio::test]
async fn a_refused_body_is_told_which_field_is_wrong() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let start = |body: Value| service.post("/v1/executions").json(&body);
    for (body, expected) in [
        (json!([]), "the body: expected an object, found a list"),
        (json!({"input": 1}), "`workflow` is missing"),
        (json!({"workflow": null}), "`workflow`: expected text, found null"),
        (json!({"workflow": "echo", "id": {}}), "`id`: expected text, found an object"),
        (json!({"workflow": "echo", "id": "a b"}), "`id` must have 1 to 200 characters"),
        (json!({"workflow": "echo", "timeout": ["1s"]}), "`timeout`: expected text, found a list"),
        (
            json!({"workflow": "echo", "timeout": "soon"}),
            "`timeout`: \"soon\" is not a duration such as",
        ),
        (
            json!({"workflow": "echo", "inputs": 1}),
            "the field \"inputs\" is unknown; there are `id`, `input`, `timeout`, `workflow`",
        ),
    ] {
        let status = if body["id"] == "a b" { 422 } else { 400 };
        let detail = refused(start(body), status).await;
        assert!(detail.starts_with(expected), "{detail:?} is not {expected:?}");
    }
    let raw = |text: &'static str| {
        service.post("/v1/executions").header("content-type", "application/json").body(text)
    };
    assert!(refused(raw("{\"a\""), 400).await.starts_with("the body is not JSON: "));
    assert_eq!(refused(raw(""), 400).await, "the body is empty");
}

#[tokio::test]
async fn a_refused_event_is_told_which_attribute_is_wrong() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let publish = |kind: &str, body: Value| {
        let body = body.to_string();
        service.post("/v1/events").header("content-type", kind.to_owned()).body(body)
    };
    let event = |change: Value| {
        let mut event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
        event.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        event
    };
    let (short, one) = ("application/json", "application/cloudevents+json");
    let batch = "application/cloudevents-batch+json";
    for (kind, body, status, expected) in [
        (short, json!({"data": 1}), 400, "`type` is missing"),
        (short, json!({"type": {}}), 400, "`type`: expected text, found an object"),
        (one, json!({"type": "t"}), 422, "`specversion` is missing"),
        (one, event(json!({"id": 3})), 422, "`id`: expected text, found 3"),
        (one, event(json!({"time": "now"})), 422, "`time` must be an RFC 3339 date-time"),
        (batch, event(json!({})), 400, "the body: expected a list, found an object"),
        (batch, json!([event(json!({})), 7]), 400, "`[1]`: expected an object, found 7"),
    ] {
        let detail = refused(publish(kind, body), status).await;
        assert!(detail.starts_with(expected), "{detail:?} is not {expected:?}");
    }
}

#[tokio::test]
async fn a_refused_parameter_is_told_what_it_should_be() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let limit = "`limit`: expected a whole number from 1 to 200, found";
    let status = "`status`: expected one of \"accepted\", \"running\", \"completed\", \"failed\", \
                  \"cancelled\", \"terminated\", \"timed_out\", found \"gone\"";
    for (query, expected) in [
        ("limit=abc", format!("{limit} \"abc\"")),
        ("limit=0", format!("{limit} \"0\"")),
        ("limit=a%20b%22", format!("{limit} \"a b\\\"\"")),
        (&format!("limit={}", "9".repeat(500)), format!("{limit} \"{}\"…", "9".repeat(40))),
        ("workflow=x&status=gone", status.to_owned()),
        ("cursor=1", "`cursor` must be the next_cursor of an earlier answer".to_owned()),
        ("workflow=%00", "`workflow` has a NUL character".to_owned()),
    ] {
        let list = service.get(&format!("/v1/executions?{query}"));
        assert_eq!(refused(list, 400).await, expected);
    }
    let wait = refused(service.get("/v1/executions/x?wait=long"), 400).await;
    assert!(wait.starts_with("`wait`: \"long\" is not a duration such as"), "{wait}");
    let delivery = service.post("/v1/events?delivery=slow").json(&json!({"type": "x"}));
    let expected = "`delivery`: expected one of \"durable\", \"direct\", found \"slow\"";
    assert_eq!(refused(delivery, 400).await, expected);
    let key = service.post("/v1/executions").header("Idempotency-Key", "");
    let key = refused(key.json(&json!({"workflow": "echo"})), 400).await;
    assert!(key.starts_with("`Idempotency-Key` must have 1 to 255"), "{key}");
}
