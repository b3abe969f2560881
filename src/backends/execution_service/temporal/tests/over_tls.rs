//! TLS, with certificates on both sides.

use super::*;
use crate::backends::test_server::{TlsFront, certificate};

/// Settings with everything that the proxy of [`guarded`] requires.
pub(super) fn encrypted(front: &TlsFront) -> Config {
    section_of(json!({
        "address": front.address,
        "task_queue": format!("test-{}", ids::new_id()),
        "workflow_id_prefix": "tls-",
        "tls": {
            "enabled": true,
            "ca_file": certificate("ca.pem"),
            "cert_file": certificate("client.pem"),
            "key_file": certificate("client.key"),
        },
    }))
}

fn section_of(section: Value) -> Config {
    Section(section).read().expect("a good section")
}

/// A server that requires client certificates.
pub(super) async fn guarded() -> TlsFront {
    TlsFront::wanting_certificates(&address(), "server").await
}

/// Asserts that the error is about TLS.
async fn refused(config: &Config) -> Error {
    let error = refusal(config).await;
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Tls, RetryClass::NotSent), "{error}");
    error
}

fn with(config: &Config, key: &str, value: Value) -> Config {
    let mut section = serde_json::to_value(config).unwrap();
    section["tls"][key] = value;
    section_of(section)
}

#[tokio::test]
async fn an_execution_is_started_over_tls() {
    let front = guarded().await;
    let temporal = connected(&encrypted(&front)).await.unwrap();
    temporal.probe().await.unwrap();
    let request = idle_request();
    temporal.start(&request).await.unwrap();
    assert_eq!(temporal.describe(&request.id).await.unwrap().outcome.status, Status::Running);
    temporal.terminate(&request.id, "done").await.unwrap();
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let front = guarded().await;
    let config = with(&encrypted(&front), "cert_file", Value::Null);
    refused(&with(&config, "key_file", Value::Null)).await;
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_refused() {
    let front = guarded().await;
    let config = encrypted(&front);
    refused(&with(&config, "ca_file", json!(certificate("stranger.pem")))).await;
    // Without a file, only the system's authorities are trusted.
    refused(&with(&config, "ca_file", Value::Null)).await;
}

#[tokio::test]
async fn a_certificate_of_another_host_needs_its_name() {
    let front = TlsFront::start(&address(), "elsewhere").await;
    let config = encrypted(&front);
    refused(&config).await;
    connected(&with(&config, "domain", json!("elsewhere.invalid"))).await.unwrap();
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let front = guarded().await;
    // A key in place of a certificate, and the reverse.
    for (key, other) in [("ca_file", "ca.key"), ("cert_file", "ca.key"), ("key_file", "ca.pem")] {
        for name in ["missing.pem", other] {
            let config = with(&encrypted(&front), key, json!(certificate(name)));
            let error = refused(&config).await;
            assert!(error.message().contains(key), "{error}");
            assert!(error.message().contains(name), "{error}");
        }
    }
}
