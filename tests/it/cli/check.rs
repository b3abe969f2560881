//! `agentarea-api check`: reports on working and failing connections, without changing anything.

use serde_json::{Value, json};

use crate::support::Setup;

/// Text that no output may contain.
const SECRET: &str = "hunter2";

/// Runs the check; returns the exit code and the JSON document, its only output.
async fn check(setup: Setup) -> (i32, Value) {
    let output = setup.argument("check").argument("--format").argument("json").output().await;
    let told = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("not one JSON document: {error}\n{told}"));
    assert_eq!(told, "");
    assert!(!report.to_string().contains(SECRET), "{report}");
    (output.status.code().unwrap(), report)
}

fn connection<'a>(report: &'a Value, name: &str) -> &'a Value {
    let connections = report["connections"].as_array().unwrap();
    connections.iter().find(|connection| connection["name"] == name).unwrap()
}

/// Asserts that one connection fails with `class`, `words` in its message, a remedy, and the exit
/// code.
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
async fn fails(name: &str, setup: Setup, (code, class, words): (i32, &str, &str)) {
    let (exit, report) = check(setup).await;
    let line = connection(&report, name);
    assert_eq!((exit, &line["class"]), (code, &json!(class)), "{report}");
    assert_eq!((&report["ok"], &line["ok"]), (&json!(false), &json!(false)));
    assert!(line["message"].as_str().unwrap().contains(words), "{words:?} is not in {line}");
    assert!(!line["remedy"].as_str().unwrap().is_empty(), "{line}");
    assert!(line["duration_ms"].as_u64().unwrap() < 10_000, "it is bounded: {line}");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn embedded_defaults_are_good_and_nothing_is_made() {
    let setup = Setup::new().argument("check");
    let output = setup.output().await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(std::fs::read_dir(setup.path()).unwrap().count(), 0, "nothing was made");
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    let column = lines[0].find("ADDRESS").unwrap();
    assert!(lines[1].starts_with("event_broker") && lines[1][column..].starts_with("in this pro"));
    assert!(lines[3][column..].starts_with("data/agentarea.db"), "{table}");
    assert!(lines[3].contains("ok: the file does not exist yet"), "{table}");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn it_works_beside_a_service_on_the_same_file() {
    let service = Setup::new().start().await;
    service.healthy().await;
    let path = service.path().join("data/agentarea.db").display().to_string();
    let (code, report) = check(Setup::new().set("database.sqlite.path", &path)).await;
    assert_eq!((code, &report["ok"]), (0, &json!(true)), "{report}");
    let database = connection(&report, "database");
    assert!(database["message"].as_str().unwrap().contains("another process"), "{report}");
    assert_eq!(connection(&report, "execution_service")["address"], "in this process");
    let id = service.execute(&json!({"workflow": "echo", "input": 1})).await;
    assert_eq!(service.result(&id).await["result"], 1, "the service is not disturbed");
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_and_so_is_what_builds_on_it() {
    let setup = Setup::new();
    std::fs::create_dir_all(setup.path().join("data/agentarea.db")).unwrap();
    let (code, report) = check(setup).await;
    assert_eq!(code, 69);
    for name in ["database", "execution_service"] {
        let line = connection(&report, name);
        assert_eq!(line["class"], "unavailable");
        assert!(line["message"].as_str().unwrap().contains("data/agentarea.db"), "{line}");
    }
    assert_eq!(connection(&report, "event_broker")["ok"], true);
}

#[tokio::test]
async fn a_bad_configuration_is_reported_as_at_start() {
    let setup = Setup::new().variable("AGENTAREA_EVENT_BROKER__BAKEND", "x").argument("check");
    let output = setup.output().await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0));
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use crate::support::{Redis, certificate, free_port, variable};

    async fn fails(setup: Setup, expected: (i32, &str, &str)) {
        super::fails("event_broker", setup, expected).await;
    }

    fn at(url: &str) -> Setup {
        Setup::new().variable("REDIS_URL", url).set("event_broker.startup", "lazy")
    }

    #[tokio::test]
    async fn servers_that_do_not_answer_are_distinguished() {
        let nobody = format!("redis://u:{SECRET}@127.0.0.1:{}", free_port());
        fails(at(&nobody), (69, "refused", "nothing listens")).await;
        let unknown = format!("redis://u:{SECRET}@redis.invalid:6379");
        fails(at(&unknown), (69, "name_not_found", "does not resolve")).await;
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://:{SECRET}@{}", silent.local_addr().unwrap());
        fails(at(&url), (69, "timeout", "no answer")).await;
    }

    #[tokio::test]
    async fn a_refused_login_has_an_exit_code_of_its_own() {
        let redis = Redis::start_with(&["--requirepass", "right"]).await;
        let address = redis.url().replace("redis://", "");
        fails(at(&redis.url()), (77, "unauthenticated", "login")).await;
        let wrong = format!("redis://:{SECRET}@{address}");
        fails(at(&wrong), (77, "unauthenticated", "login")).await;
        let setup = at(&redis.url());
        let file = setup.path().join("password");
        std::fs::write(&file, SECRET).unwrap();
        let setup = setup.set("event_broker.redis.password_file", &file.display().to_string());
        fails(setup, (77, "unauthenticated", "login")).await;

        let (code, report) = check(at(&format!("redis://:right@{address}/0"))).await;
        assert_eq!(code, 0, "{report}");
        assert_eq!(connection(&report, "event_broker")["address"], format!("{address}/0"));
        assert!(!report.to_string().contains("right"), "{report}");
    }

    #[tokio::test]
    async fn a_replica_takes_no_writes() {
        let primary = Redis::start().await;
        let port = primary.url().rsplit_once(':').unwrap().1.to_owned();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port]).await;
        fails(at(&replica.url()), (69, "read_only", "replica")).await;
    }

    #[tokio::test]
    async fn a_server_that_may_lose_events_passes_with_a_note() {
        let redis =
            Redis::start_with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]).await;
        let (code, report) = check(at(&redis.url())).await;
        let broker = connection(&report, "event_broker");
        assert_eq!((code, &broker["ok"]), (0, &json!(true)), "{report}");
        assert!(broker["message"].as_str().unwrap().contains("noeviction"), "{broker}");
        let redis = Redis::start().await;
        let (_, report) = check(at(&redis.url())).await;
        assert_eq!(connection(&report, "event_broker").get("message"), None, "{report}");
    }

    #[tokio::test]
    async fn a_database_that_is_not_there_is_named() {
        let redis = Redis::start_with(&["--databases", "4"]).await;
        fails(at(&format!("{}/9", redis.url())), (69, "missing", "no such database")).await;
    }

    #[tokio::test]
    async fn an_unknown_authority_is_a_matter_of_tls() {
        let stranger = certificate("stranger.pem");
        let setup = at(&variable("TEST_REDIS_TLS_URL"))
            .set("event_broker.redis.ca_file", &stranger.to_string_lossy());
        fails(setup, (76, "tls", "TLS")).await;
        // Of several failures the exit code is the highest.
        let setup = at(&variable("TEST_REDIS_TLS_URL"))
            .set("event_broker.redis.ca_file", &stranger.to_string_lossy());
        #[cfg(feature = "temporal")]
        let setup = setup.variable("TEMPORAL_ADDRESS", &format!("127.0.0.1:{}", free_port()));
        fails(setup, (76, "tls", "TLS")).await;
    }
}

#[cfg(feature = "temporal")]
mod temporal {
    use super::*;
    use crate::support::{free_port, variable};

    async fn fails(setup: Setup, expected: (i32, &str, &str)) {
        super::fails("execution_service", setup, expected).await;
    }

    fn at(address: &str) -> Setup {
        Setup::new().variable("TEMPORAL_ADDRESS", address)
    }

    #[tokio::test]
    async fn a_missing_namespace_is_named() {
        let setup = at(&variable("TEST_TEMPORAL_ADDRESS")).variable("TEMPORAL_NAMESPACE", "nope");
        fails(setup, (69, "missing", "\"nope\"")).await;
    }

    #[tokio::test]
    async fn another_server_is_not_taken_for_temporal() {
        fails(at(&format!("127.0.0.1:{}", free_port())), (69, "refused", "no connection")).await;
        fails(at("temporal.invalid:7233"), (69, "name_not_found", "no connection")).await;
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = silent.local_addr().unwrap().to_string();
        fails(at(&silent), (69, "timeout", "no connection")).await;
    }

    #[tokio::test]
    async fn a_server_without_tls_is_a_matter_of_tls() {
        let setup = at(&variable("TEST_TEMPORAL_ADDRESS"))
            .set("execution_service.temporal.tls.enabled", "true");
        fails(setup, (76, "tls", "corrupt message")).await;
    }

    #[tokio::test]
    async fn address_and_namespace_are_shown() {
        let address = variable("TEST_TEMPORAL_ADDRESS");
        let (code, report) = check(at(&address)).await;
        assert_eq!(code, 0, "{report}");
        let told = &connection(&report, "execution_service")["address"];
        assert_eq!(*told, format!("{address}, namespace default"));
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use crate::support::{Database, certificate, free_port, variable};

    async fn fails(setup: Setup, expected: (i32, &str, &str)) {
        super::fails("database", setup, expected).await;
    }

    fn at(url: &str) -> Setup {
        Setup::new().variable("DATABASE_URL", url)
    }

    #[tokio::test]
    async fn a_new_database_is_good_and_stays_empty() {
        let database = Database::create().await;
        let (code, report) = check(at(&database.url)).await;
        assert_eq!(code, 0, "{report}");
        let line = connection(&report, "database");
        assert_eq!(line["address"], format!("{}/{}", database.address(), database.name()));
        assert!(line["message"].as_str().unwrap().contains("tables do not exist"), "{line}");
        // Fails if the check has created the tables.
        database.within("CREATE TABLE schema_info ()").await;
        database.drop().await;
    }

    #[tokio::test]
    async fn unreachable_servers_and_missing_databases_are_distinguished() {
        let server = variable("TEST_DATABASE_URL");
        let (base, _) = server.rsplit_once('/').unwrap();
        fails(at(&format!("{base}/nope")), (69, "missing", "\"nope\"")).await;
        let nobody = format!("postgres://u:{SECRET}@127.0.0.1:{}/d", free_port());
        fails(at(&nobody), (69, "refused", "cannot be reached")).await;
        let unknown = format!("postgres://u:{SECRET}@postgres.invalid/d");
        fails(at(&unknown), (69, "name_not_found", "cannot be reached")).await;
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://u:{SECRET}@{}/d", silent.local_addr().unwrap());
        fails(at(&url), (69, "timeout", "connect_timeout")).await;
    }

    #[tokio::test]
    async fn a_refused_password_and_an_unknown_authority_are_distinguished() {
        let database = Database::create().await;
        let role = format!("check_{}", database.name());
        let login = format!("CREATE ROLE {role} LOGIN PASSWORD 'right' IN ROLE by_password");
        database.within(&login).await;
        let wrong = format!("postgres://{role}:{SECRET}@{}/agentarea", database.address());
        fails(at(&wrong), (77, "unauthenticated", "refuses user or password")).await;
        // The schema of a database belongs to its owner.
        let right = format!("postgres://{role}:right@{}/{}", database.address(), database.name());
        fails(at(&right), (77, "forbidden", "may not create")).await;
        let stranger = certificate("stranger.pem");
        let setup = at(&database.url)
            .set("database.postgres.tls", "verify")
            .set("database.postgres.ca_file", &stranger.to_string_lossy());
        fails(setup, (76, "tls", "certificate")).await;
        database.within(&format!("DROP ROLE {role}")).await;
        database.drop().await;
    }

    #[tokio::test]
    async fn a_database_that_cannot_serve_this_program_is_refused() {
        let database = Database::create().await;
        let service = at(&database.url).start().await;
        service.healthy().await;
        let (code, report) = check(at(&database.url)).await;
        assert_eq!(code, 0, "beside a running service: {report}");
        drop(service);
        let name = database.name();
        let read_only =
            |value| format!("ALTER DATABASE {name} SET default_transaction_read_only = {value}");
        database.execute(&read_only("on")).await;
        fails(at(&database.url), (69, "read_only", "read-only")).await;
        database.execute(&read_only("off")).await;
        database.within("UPDATE schema_info SET oldest_program = '999.0.0'").await;
        fails(at(&database.url), (76, "incompatible", "999.0.0 or newer")).await;
        database.drop().await;
    }
}
