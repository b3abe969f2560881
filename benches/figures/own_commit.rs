//! Measures a commit of the databases alone: one row, one client, no other load.

use std::time::Instant;

use diesel::{Connection, SqliteConnection, connection::SimpleConnection};

use crate::{median, support::Database};

const COMMITS: usize = 2000;
const TABLE: &str = "CREATE TABLE own_commit (n INTEGER)";
const ROW: &str = "INSERT INTO own_commit VALUES (1)";

/// Returns the median in milliseconds, of a file with the same settings as the program's own.
pub(crate) fn sqlite_ms() -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("db");
    let mut conn = SqliteConnection::establish(&path.to_string_lossy()).expect("a database");
    let settings = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;";
    conn.batch_execute(&format!("{settings} {TABLE}")).expect("it is set up");
    let commit = |_| {
        let begin = Instant::now();
        conn.batch_execute(ROW).expect("it is committed");
        begin.elapsed().as_secs_f64() * 1e3
    };
    median((0..COMMITS).map(commit).collect())
}

/// Returns the median in milliseconds.
pub(crate) async fn postgres_ms(database: &Database) -> f64 {
    let commits = async |client: &tokio_postgres::Client| {
        client.batch_execute(TABLE).await.expect("it is set up");
        let row = client.prepare(ROW).await.expect("it is prepared");
        let mut took = Vec::new();
        for _ in 0..COMMITS {
            let begin = Instant::now();
            client.execute(&row, &[]).await.expect("it is committed");
            took.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        client.batch_execute("DROP TABLE own_commit").await.expect("it goes");
        median(took)
    };
    database.with_client(commits).await
}
