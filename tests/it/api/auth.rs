//! Authentication and authorization.

use serde_json::json;

use crate::support::{Setup, answer, http_client};

fn sha256(key: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(key))
}

fn guarded() -> Setup {
    let key = |name: &str, scope: &str| {
        format!("{{name=\"{name}\", sha256=\"{}\", scopes=[\"{scope}\"]}}", sha256(name))
    };
    let keys = format!("[{}, {}]", key("reader", "read"), key("writer", "write"));
    Setup::new()
        .set("auth.mode", "\"api_key\"")
        .variable("AGENTAREA_AUTH__KEYS", &keys)
        .set("auth.open_metrics", "false")
        .set("health.details", "\"when_authorized\"")
        .set("telemetry.log_filter", "\"debug\"")
}

#[tokio::test]
async fn keys_grant_what_their_scopes_say() {
    let service = guarded().start().await;
    service.healthy().await;
    let get = async |path: &str, key: Option<&str>| {
        let request = service.get(path);
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        request.send().await.unwrap()
    };
    for path in ["/health", "/livez", "/readyz", "/docs", "/openapi.json"] {
        assert_eq!(get(path, None).await.status(), 200, "{path} is open");
    }
    for path in ["/v1/executions", "/v1/connections", "/metrics", "/v1/events/stream"] {
        let refused = get(path, None).await;
        assert_eq!(refused.status(), 401, "{path}");
        assert_eq!(refused.headers()["www-authenticate"], "Bearer");
        assert_eq!(get(path, Some("wrong")).await.status(), 401, "{path}");
        assert_eq!(get(path, Some("writer")).await.status(), 403, "{path}");
        assert_eq!(get(path, Some("reader")).await.status(), 200, "{path}");
    }
    let publish =
        |key: &str| answer(service.post("/v1/events").bearer_auth(key).json(&json!({"type": "x"})));
    assert_eq!(publish("reader").await.0, 403);
    assert_eq!(publish("writer").await.0, 202);

    let details = async |key: Option<&str>| {
        let health: serde_json::Value = get("/health", key).await.json().await.unwrap();
        let details = health["connections"].get("details").is_some();
        assert_eq!(health.get("outbox").is_some(), details);
        details
    };
    assert!(!details(None).await);
    assert!(!details(Some("writer")).await);
    assert!(details(Some("reader")).await);
    assert!(!service.log().contains("wrong"), "no key is logged");
}

/// The status, and the type of the problem if it is one.
async fn refusal(request: reqwest::RequestBuilder) -> (u16, String) {
    let (status, problem) = answer(request).await;
    let kind = problem["type"].as_str().unwrap_or_default();
    (status.as_u16(), kind.rsplit(':').next().unwrap_or_default().to_owned())
}

fn refused(status: u16, kind: &str) -> (u16, String) {
    (status, kind.to_owned())
}

#[tokio::test]
async fn without_keys_pages_of_other_sites_change_nothing() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let own = service.base.clone();
    for path in ["/v1/config/reload", "/v1/connections/database/reconnect", "/v1/events"] {
        let post = || service.post(path).header("content-type", "text/plain").body("{}");
        for foreign in [
            post().header("sec-fetch-site", "cross-site"),
            post().header("sec-fetch-site", "same-site").header("origin", &own),
            post().header("origin", "https://evil.example"),
            post().header("origin", "null"),
        ] {
            assert_eq!(refusal(foreign).await, refused(403, "cross-site"), "{path}");
        }
    }
    let event = json!({"type": "t"});
    let post = || service.post("/v1/events").json(&event);
    for welcome in [
        post(),
        post().header("origin", &own),
        post().header("origin", &own).header("sec-fetch-site", "same-origin"),
    ] {
        assert_eq!(refusal(welcome).await.0, 202);
    }
    let reads = service.get("/v1/executions").header("sec-fetch-site", "cross-site");
    assert_eq!(refusal(reads).await.0, 200, "whose answer the browser keeps from it");
}

#[tokio::test]
async fn without_keys_the_service_answers_to_names_of_its_own() {
    let setup = Setup::new().set("server.allowed_hosts", "[\"api.example.org\"]");
    let service = setup.start().await;
    service.healthy().await;
    let get = |path: &str, host: &str| refusal(service.get(path).header("host", host));
    for host in ["api.example.org", "localhost:8000", "agentarea-api", "10.0.0.1:8000"] {
        assert_eq!(get("/v1/executions", host).await.0, 200, "{host}");
    }
    for path in ["/v1/executions", "/metrics", "/docs", "/"] {
        assert_eq!(get(path, "evil.example").await, refused(421, "misdirected"), "{path}");
    }
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(get(path, "evil.example").await.0, 200, "{path} is a probe");
    }
    // In HTTP/2 the host name is not a header.
    let address = service.base.trim_start_matches("http://").parse().unwrap();
    let client = http_client()
        .http2_prior_knowledge()
        .resolve_to_addrs("evil.example", &[address])
        .build()
        .unwrap();
    let rebound = client.get(format!("http://evil.example:{}/v1/executions", address.port()));
    assert_eq!(refusal(rebound).await, refused(421, "misdirected"));
}

#[tokio::test]
async fn where_a_key_is_asked_for_neither_page_nor_name_matters() {
    let service = guarded().start().await;
    service.healthy().await;
    let request = service
        .post("/v1/events")
        .bearer_auth("writer")
        .header("host", "anything.example")
        .header("origin", "https://console.example")
        .header("sec-fetch-site", "cross-site")
        .json(&json!({"type": "t"}));
    assert_eq!(refusal(request).await.0, 202);
}
