//! `[server.tls]`, on the real program.

use std::path::Path;

use reqwest::{Certificate, Version};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{DEADLINE, Service, Setup, certificate, http_client, signal};

fn setup(cert_file: &Path, key_file: &Path) -> Setup {
    let [cert_file, key_file] = [cert_file, key_file].map(|file| file.display().to_string());
    Setup::new().set("server.tls.cert_file", &cert_file).set("server.tls.key_file", &key_file)
}

async fn secured() -> Service {
    setup(&certificate("server.pem"), &certificate("server.key")).start().await
}

fn authority(name: &str) -> Certificate {
    Certificate::from_pem(&std::fs::read(certificate(name)).unwrap()).unwrap()
}

#[tokio::test]
async fn https_is_served_in_both_versions() {
    let service = secured().await;
    assert!(service.base.starts_with("https://"), "{}", service.base);
    let client =
        || http_client().tls_built_in_root_certs(false).add_root_certificate(authority("ca.pem"));
    for (client, version) in
        [(client().http1_only(), Version::HTTP_11), (client(), Version::HTTP_2)]
    {
        let client = client.build().unwrap();
        let answer = client.get(format!("{}/health", service.base)).send().await.unwrap();
        assert_eq!(answer.version(), version);
        let health: Value = answer.json().await.unwrap();
        assert_eq!(health["service"], "agentarea-api");
    }
}

#[tokio::test]
async fn the_certificate_is_the_configured_one() {
    let service = secured().await;
    let strict = http_client()
        .tls_built_in_root_certs(false)
        .add_root_certificate(authority("stranger.pem"));
    let refused = strict.build().unwrap().get(&service.base).send().await.unwrap_err();
    assert!(format!("{refused:?}").contains("UnknownIssuer"), "{refused:?}");
}

#[tokio::test]
async fn a_client_without_tls_is_turned_away_at_once() {
    let service = secured().await;
    let address = service.base.trim_start_matches("https://");
    let plain = service.http.get(format!("http://{address}/health")).send();
    assert!(timeout(DEADLINE, plain).await.expect("it is not left waiting").is_err());

    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "it was left waiting");
    assert!(!rest.starts_with(b"HTTP/"), "it got an answer in clear text");
}

#[tokio::test]
async fn a_client_that_never_says_hello_holds_up_neither_others_nor_the_end() {
    let mut service = secured().await;
    let address = service.base.trim_start_matches("https://").to_owned();
    let _silent = TcpStream::connect(&address).await.unwrap();
    let port = address.rsplit_once(':').unwrap().1;
    let asking =
        setup(&certificate("server.pem"), &certificate("server.key")).set("server.port", port);
    let (code, log) = asking.argument("health").run().await;
    assert_eq!(code, Some(0), "{log}");
    signal(&service.child, "-TERM");
    assert_eq!(service.exit_code().await, Some(0), "{}", service.log());
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_their_keys() {
    let (good, key) = (certificate("server.pem"), certificate("server.key"));
    for (cert_file, key_file, complaint) in [
        (certificate("missing.pem"), key.clone(), "cert_file"),
        (key.clone(), key, "cert_file"),
        (good.clone(), certificate("missing.key"), "key_file"),
        (good.clone(), good.clone(), "key_file"),
        (good, certificate("client.key"), "key_file"),
    ] {
        let named = if complaint == "cert_file" { &cert_file } else { &key_file };
        let expected = format!("server.tls.{complaint}: {}", named.display());
        let (code, log) = setup(&cert_file, &key_file).run().await;
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains(&expected), "{expected} is missing in\n{log}");
        assert!(!log.contains("listening"), "{log}");
    }
}
