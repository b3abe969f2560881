//! Doors.

use serde_json::json;

use crate::support::{Setup, answer};

fn sha256(key: &str) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(key))
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
async fn keys_open_what_their_scopes_say() {
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
