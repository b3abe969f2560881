//! `rediss://`.

use serde_json::json;

use super::*;
use crate::backends::test_server::{TlsFront, certificate, variable};

/// The TLS port of the server, with credentials that must not appear in any message.
fn url() -> String {
    let url = variable("TEST_REDIS_TLS_URL");
    url.replace("rediss://", "rediss://default:hunter2@")
}

/// Checks that TLS caused the failure, and that no secret is revealed.
async fn refused(section: Value) -> Error {
    let error = failure(section).await;
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert!(!error.outcome_unknown(), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    error
}

#[tokio::test]
async fn the_contract_holds_over_tls() {
    let scratch = Scratch::new();
    let url = variable("TEST_REDIS_TLS_URL");
    let section = json!({"url": url, "ca_file": certificate("ca.pem")});
    contract::suite(scratch.broker(section).await).await;
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_refused() {
    refused(json!({"url": url(), "ca_file": certificate("stranger.pem")})).await;
    // Without a file, only the public authorities are trusted.
    refused(json!({"url": url()})).await;
}

#[tokio::test]
async fn a_certificate_of_another_host_is_refused() {
    let server = server().replace("redis://", "");
    let front = TlsFront::start(&server, "elsewhere").await;
    let url = format!("rediss://default:hunter2@{}", front.address);
    refused(json!({"url": url, "ca_file": certificate("ca.pem")})).await;
}

#[tokio::test]
async fn a_file_without_authorities_is_named() {
    for name in ["missing.pem", "ca.key"] {
        let error = refused(json!({"url": url(), "ca_file": certificate(name)})).await;
        assert!(error.message().contains("ca_file"), "{error}");
        assert!(error.message().contains(name), "{error}");
    }
}
