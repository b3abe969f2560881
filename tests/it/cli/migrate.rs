//! The move from the embedded database to `PostgreSQL`.

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use serde_json::json;

use crate::{
    faults::awkward::unreadable_event,
    support::{Database, Redis, Setup, answer, eventually, free_port},
};

/// A service that was started beside the file may have accepted other work under the same id.
#[tokio::test]
async fn conflicting_rows_are_neither_moved_nor_lost() {
    let database = Database::create().await;
    let start = |service: &crate::support::Service, input: u32| {
        let body = json!({"workflow": "echo", "id": "mine", "input": input});
        answer(service.post("/v1/executions").json(&body))
    };
    let embedded = Setup::new().start().await;
    embedded.healthy().await;
    assert_eq!(start(&embedded, 1).await.0, 202);
    assert_eq!(embedded.result("mine").await["result"], 1);
    let file = embedded.path().join("data/agentarea.db");
    let file = format!("sqlite:{}", file.display());
    let setup = embedded.kill();

    let other = Setup::new().variable("DATABASE_URL", &database.url).start().await;
    other.healthy().await;
    assert_eq!(start(&other, 2).await.0, 202);
    assert_eq!(other.result("mine").await["result"], 2);
    drop(other);

    let setup = setup.variable("DATABASE_URL", &database.url);
    let output = setup.output_of(&["migrate", "--from", &file]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("\"mine\""), "{said}");
    let kept = setup.variable("DATABASE_URL", &file).start().await;
    kept.healthy().await;
    assert_eq!(kept.result("mine").await["result"], 1);
    drop(kept);
    database.drop().await;
}

#[tokio::test]
async fn everything_in_the_embedded_database_moves_to_postgres() {
    let redis = Redis::start().await;
    let database = Database::create().await;
    // This broker cannot be reached, so events wait.
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let embedded = Setup::new().variable("REDIS_URL", &nowhere).start().await;
    embedded.health("the outage shows", |health| health["status"] == "degraded").await;
    let start = |service: &crate::support::Service| {
        let body = json!({"workflow": "echo", "id": "first", "input": 1});
        answer(service.post("/v1/executions").header("Idempotency-Key", "k").json(&body))
    };
    let (status, first) = start(&embedded).await;
    assert_eq!(status, 202, "{first}");
    assert_eq!(embedded.result("first").await["status"], "completed");
    let event = json!({"type": "waiting", "subject": "a"});
    let (status, published) = embedded.send("/v1/events", &event).await;
    assert_eq!(status, 202);

    let file = embedded.path().join("data/agentarea.db");
    let setup =
        embedded.kill().variable("REDIS_URL", &redis.url()).variable("DATABASE_URL", &database.url);
    let mut damaging = SqliteConnection::establish(file.to_str().unwrap()).unwrap();
    damaging.batch_execute(&unreadable_event("damaged", 0)).unwrap();
    drop(damaging);
    // The service warns if the move was forgotten.
    let forgetful = setup.start().await;
    forgetful.healthy().await;
    eventually("the warning is logged", async || {
        forgetful.log().contains("migrate --from sqlite:data/agentarea.db").then_some(())
    })
    .await;

    let file = format!("sqlite:{}", file.display());
    let setup = forgetful.kill();
    let output = setup.output_of(&["migrate", "--from", &file]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("has moved"), "{said}");
    let again = setup.output_of(&["migrate", "--from", &file]).await;
    assert!(String::from_utf8(again.stdout).unwrap().contains(" 0 rows"), "it moves once");
    let missing = setup.output_of(&["migrate", "--from", "sqlite:nowhere.db"]).await;
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("there is no file nowhere.db"), "{said}");

    let service = setup.start().await;
    service.healthy().await;
    let mut events = service.follow("?type=waiting", Some("0-0")).await;
    let gap = events.next().await;
    assert_eq!(gap.name.as_deref(), Some("gap"));
    assert_eq!(events.ids(1).await, [published["id"].as_str().unwrap()]);
    assert_eq!(service.result("first").await["result"], 1);
    assert_eq!(start(&service).await, (status, first), "the key is known");
    let damaged = eventually("what cannot be read has moved too", async || {
        service.json("/v1/dead-letters").await["items"].as_array()?.first().cloned()
    })
    .await;
    assert!(damaged["error"].as_str().unwrap().contains("cannot be read"), "{damaged}");
    assert!(!service.log().contains("migrate --from"), "nothing is left behind");
    drop(service);
    database.drop().await;
}
