//! The four levels of `tls`.

use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{
    backends::test_server::{PostgresDatabase, certificate, variable},
    telemetry::metrics::Metrics,
};

fn url() -> String {
    variable("TEST_DATABASE_URL").replace("postgres@", "postgres:hunter2@")
}

/// The same server under a name that its certificate does not have.
fn elsewhere() -> String {
    let url = url().replace("127.0.0.1", "elsewhere.invalid");
    format!("{url}?hostaddr=127.0.0.1")
}

async fn connect(section: Value) -> Result<Conn, Error> {
    let config: Config = Section(section).read()?;
    let context = BuildContext {
        connection: FAMILY,
        instance: "test".into(),
        pool: crate::config::Pool::default(),
        metrics: Metrics::new("0", "0").connection(FAMILY),
        tasks: crate::tasks::Tasks::default(),
        closing: tokio_util::sync::CancellationToken::new(),
    };
    Connector::new(&config, &context)?.connect().await
}

/// Whether the session uses TLS, as the server reports it.
async fn encrypted(section: Value) -> bool {
    let mut conn = connect(section).await.expect("the server lets us in");
    let asked = "(SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid())";
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(asked))
        .get_result(&mut conn)
        .await
        .expect("the server tells")
}

/// Asserts that the error is about TLS and contains no secret.
async fn refused(section: Value) -> Error {
    let Err(error) = connect(section).await else { panic!("the connection is made") };
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert!(!error.outcome_unknown(), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_holds_over_checked_tls() {
    let database = PostgresDatabase::create().await;
    let ca_file = certificate("ca.pem");
    let section = json!({"url": database.url, "tls": "verify", "ca_file": ca_file});
    assert!(encrypted(section.clone()).await);
    contract::suite(&Factory, &Section(section)).await;
    database.drop().await;
}

#[tokio::test]
async fn each_grade_encrypts_as_it_says() {
    for (tls, expected) in [("disable", false), ("prefer", true), ("require", true)] {
        assert_eq!(encrypted(json!({"url": url(), "tls": tls})).await, expected, "{tls}");
        // None of them checks the name in the certificate.
        assert_eq!(encrypted(json!({"url": elsewhere(), "tls": tls})).await, expected, "{tls}");
    }
}

#[tokio::test]
async fn verify_refuses_a_server_of_an_unknown_authority() {
    let unknown = certificate("stranger.pem");
    refused(json!({"url": url(), "tls": "verify", "ca_file": unknown})).await;
    // Without a file, only public authorities are trusted.
    refused(json!({"url": url(), "tls": "verify"})).await;
}

#[tokio::test]
async fn verify_refuses_a_certificate_of_another_host() {
    let ca_file = certificate("ca.pem");
    refused(json!({"url": elsewhere(), "tls": "verify", "ca_file": ca_file})).await;
}

#[tokio::test]
async fn a_file_without_authorities_is_named() {
    for name in ["missing.pem", "ca.key"] {
        let ca_file: PathBuf = certificate(name);
        let error = refused(json!({"url": url(), "tls": "verify", "ca_file": ca_file})).await;
        assert!(error.message().contains("ca_file"), "{error}");
        assert!(error.message().contains(name), "{error}");
    }
}

/// Tells every client that the server has no TLS, and forwards the rest.
async fn without_tls(listener: TcpListener, server: String) {
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let server = server.clone();
        connections.spawn(async move {
            let mut far = TcpStream::connect(server).await?;
            let mut question = [0; 8];
            near.read_exact(&mut question).await?;
            near.write_all(b"N").await?;
            copy_bidirectional(&mut near, &mut far).await
        });
    }
}

#[tokio::test]
async fn only_prefer_does_without_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let (_, server) = url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let (server, _database) = server.split_once('/').unwrap();
    let url = url().replace(server, &address);
    let mut carrying = JoinSet::new();
    carrying.spawn(without_tls(listener, server.to_owned()));
    assert!(!encrypted(json!({"url": url, "tls": "prefer"})).await);
    for tls in ["require", "verify"] {
        refused(json!({"url": url, "tls": tls})).await;
    }
}
