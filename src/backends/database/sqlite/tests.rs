use std::path::PathBuf;

use super::*;
use crate::{
    backends::database::{Acceptance, Admission, NewEvent, Work, contract, schema::outbox},
    model::{events::Event, json::Fingerprint},
};

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_fulfils_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let table = serde_json::json!({"path": folder.path().join("new/contract.db")});
    contract::suite(&Factory::default(), &Section(table)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_understands_the_version_before() {
    let file = Place::new();
    let database = file.build().await.unwrap();
    let mut before = open(&file.path, false).await.unwrap();
    before.batch_execute(contract::WRITTEN_BY_THE_VERSION_BEFORE).await.unwrap();
    contract::understands_the_version_before(&*database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_safe_beside_the_version_before() {
    let file = Place::new();
    let database = file.build().await.unwrap();
    let execute = async |statements: String| file.tidy(&statements).await;
    contract::beside_the_version_before(&*database, execute).await;
}

/// A process with its database in a folder of its own.
struct Place {
    factory: Factory,
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a #1?.db");
        Self { factory: Factory::default(), folder, path }
    }

    async fn build(&self) -> Result<Arc<dyn Database>, Error> {
        let section = Section(serde_json::json!({ "path": self.path }));
        self.factory.build(&section, &contract::context()).await
    }

    /// The database in use, with everything moved from its log into the file.
    async fn serving(&self) -> Arc<dyn Database> {
        let database = self.build().await.unwrap();
        store(&*database).await.unwrap();
        self.tidy("PRAGMA wal_checkpoint(TRUNCATE)").await;
        database.probe().await.unwrap();
        database
    }

    /// A statement that an operator runs while the service uses the file.
    async fn tidy(&self, statements: &str) {
        let mut conn = open(&self.path, false).await.unwrap();
        conn.batch_execute(statements).await.unwrap();
    }

    async fn stored(&self) -> i64 {
        let mut conn = open(&self.path, false).await.unwrap();
        diesel::QueryDsl::count(outbox::table).get_result(&mut conn).await.unwrap()
    }

    fn truncate_to(&self, size: u64) {
        OpenOptions::new().write(true).open(&self.path).unwrap().set_len(size).unwrap();
    }
}

/// Accepts an event.
async fn store(database: &dyn Database) -> Result<(), Error> {
    let new = NewEvent { event: Event::new("t", None, None), fingerprint: Fingerprint::default() };
    let admission = Admission { work: Work::Events(vec![new]), key: None };
    assert_eq!(database.accept(&[&admission]).await?, [Acceptance::Stored]);
    Ok(())
}

/// Asserts that nothing is accepted and that the probe gives the reason.
async fn is_lost(database: &dyn Database, why: &str) {
    // Either error may come first.
    let (accepted, probed) = (store(database).await, database.probe().await);
    for error in [accepted.unwrap_err(), probed.unwrap_err(), store(database).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::Missing, "{error}");
        assert!(!error.outcome_unknown(), "{error}");
        assert!(error.message().contains(why), "{error}");
        assert!(error.message().contains("put it back, or restart"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_into_a_file_that_was_deleted_and_none_is_made_in_its_place() {
    let place = Place::new();
    let database = place.serving().await;
    fs::remove_file(&place.path).unwrap();
    is_lost(&*database, "has gone").await;
    let error = place.build().await.unwrap_err();
    assert!(error.message().contains("has gone"), "{error}");
    assert!(!place.path.exists(), "an empty file took its place");

    for content in
        ["", "no database, and longer than a header of one hundred bytes".repeat(9).as_str()]
    {
        fs::write(&place.path, content).unwrap();
        place.build().await.unwrap_err();
        store(&*database).await.unwrap_err();
        database.probe().await.unwrap_err();
    }
    let other = Place::new();
    drop(open(&other.path, true).await.unwrap());
    other.tidy("CREATE TABLE t (x)").await;
    fs::rename(&other.path, &place.path).unwrap();
    let error = place.build().await.unwrap_err();
    assert!(error.message().contains("without its tables"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_moved_away_is_used_again_once_it_is_back() {
    let place = Place::new();
    let database = place.serving().await;
    let elsewhere = place.folder.path().join("elsewhere.db");
    fs::rename(&place.path, &elsewhere).unwrap();
    is_lost(&*database, "has gone").await;
    fs::rename(&elsewhere, &place.path).unwrap();
    database.probe().await.unwrap();
    store(&*database).await.unwrap();
    assert_eq!(place.stored().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_in_its_place_is_used_after_a_build_and_not_before() {
    let (place, other) = (Place::new(), Place::new());
    let database = place.serving().await;
    for _ in 0..3 {
        // The write is in the log, which stays where it is.
        store(&*database).await.unwrap();
    }
    other.serving().await.close().await;
    fs::rename(&other.path, &place.path).unwrap();
    let error = place.build().await.unwrap_err();
    assert!(error.message().contains("the one before is still in use"), "{error}");
    is_lost(&*database, "was replaced").await;
    let rebuilt = place.build().await.unwrap();
    rebuilt.probe().await.unwrap();
    store(&*rebuilt).await.unwrap();
    is_lost(&*database, "was replaced").await;
    assert_eq!(place.stored().await, 2, "that of the other, and the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_accepted_into_a_file_that_was_truncated() {
    for (size, why) in
        [(0, "while the service used it"), (4096, "was truncated"), (8192, "was truncated")]
    {
        let place = Place::new();
        let database = place.serving().await;
        let backup = fs::read(&place.path).unwrap();
        place.truncate_to(size);
        is_lost(&*database, why).await;
        place.build().await.unwrap_err();
        // Longer again, and still damaged.
        place.truncate_to(backup.len() as u64);
        database.probe().await.unwrap_err();
        place.build().await.unwrap_err();

        fs::remove_file(&place.path).unwrap();
        fs::write(&place.path, backup).unwrap();
        let rebuilt = place.build().await.unwrap();
        rebuilt.probe().await.unwrap();
        store(&*rebuilt).await.unwrap();
        assert_eq!(place.stored().await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_an_operator_has_tidied_up_is_good() {
    let place = Place::new();
    let database = place.serving().await;
    place.tidy("CREATE TABLE large AS SELECT randomblob(1000000)").await;
    place.tidy("PRAGMA wal_checkpoint(TRUNCATE)").await;
    store(&*database).await.unwrap();
    let before = fs::metadata(&place.path).unwrap().len();
    place.tidy("DROP TABLE large; VACUUM; PRAGMA wal_checkpoint(TRUNCATE)").await;
    assert!(fs::metadata(&place.path).unwrap().len() < before, "it has not become smaller");
    store(&*database).await.unwrap();
    database.probe().await.unwrap();
    assert_eq!(place.stored().await, 3);
}
