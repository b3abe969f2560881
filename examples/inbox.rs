//! A consumer that handles each event once, although it may be delivered more than once:
//! `cargo run --example inbox -- http://localhost:8000 inbox.db`.
//!
//! One transaction covers three things: the record that the event was seen, by its source and id;
//! the effect of the event, here a count; and the place in the stream at which to resume. So a
//! repeated event finds its id and has no effect, and a consumer that dies midway starts again with
//! the same event.

use std::{env, error::Error, time::Duration};

use diesel::{
    Connection, OptionalExtension, QueryableByName, RunQueryDsl, SqliteConnection,
    connection::SimpleConnection, sql_query, sql_types::Text,
};
use futures_util::StreamExt;
use serde_json::Value;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS inbox (source TEXT, id TEXT, PRIMARY KEY (source, id));
    CREATE TABLE IF NOT EXISTS counts (type TEXT PRIMARY KEY, events INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS place (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);";

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = Text)]
    id: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    agentarea_api::tls::install_provider();
    let mut arguments = env::args().skip(1);
    let (Some(base), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: inbox URL FILE".into());
    };
    let mut database = SqliteConnection::establish(&file)?;
    database.batch_execute(TABLES)?;
    loop {
        if let Err(error) = follow(&base, &mut database).await {
            eprintln!("the stream broke, it is followed again: {error}");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Handles the events from the place at which the previous run stopped.
async fn follow(base: &str, database: &mut SqliteConnection) -> Result<(), Box<dyn Error>> {
    let place: Option<Place> = sql_query("SELECT id FROM place").get_result(database).optional()?;
    let mut request = reqwest::Client::new().get(format!("{base}/v1/events/stream"));
    if let Some(place) = place {
        request = request.header("Last-Event-ID", place.id);
    }
    let mut chunks = request.send().await?.error_for_status()?.bytes_stream();
    let mut buffer = Vec::new();
    while let Some(chunk) = chunks.next().await {
        buffer.extend(chunk?);
        while let Some(end) = buffer.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = buffer.drain(..end + 2).collect();
            handle_block(std::str::from_utf8(&block)?, database)?;
        }
    }
    Ok(())
}

fn handle_block(block: &str, database: &mut SqliteConnection) -> Result<(), Box<dyn Error>> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    // Events are missing at this point and can no longer be read; the response is up to the
    // consumer.
    if field("event: ") == Some("gap") {
        println!("gap {}", field("data: ").unwrap_or_default());
        return Ok(());
    }
    let (Some(place), Some(data)) = (field("id: "), field("data: ")) else { return Ok(()) };
    let event: Value = serde_json::from_str(data)?;
    let [source, id, kind] =
        ["source", "id", "type"].map(|name| event[name].as_str().unwrap_or_default());
    let is_new = database.transaction(|database| {
        let is_new = sql_query("INSERT OR IGNORE INTO inbox VALUES (?, ?)")
            .bind::<Text, _>(source)
            .bind::<Text, _>(id)
            .execute(database)?
            == 1;
        if is_new {
            sql_query(
                "INSERT INTO counts VALUES (?, 1) ON CONFLICT DO UPDATE SET events = events + 1",
            )
            .bind::<Text, _>(kind)
            .execute(database)?;
        }
        sql_query("INSERT OR REPLACE INTO place VALUES (1, ?)")
            .bind::<Text, _>(place)
            .execute(database)?;
        diesel::result::QueryResult::Ok(is_new)
    })?;
    println!("{} {source} {id}", if is_new { "handled" } else { "repeat dropped" });
    Ok(())
}
