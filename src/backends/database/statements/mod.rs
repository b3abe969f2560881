//! The statements, written once and compiled for each database. They use nothing of a database but
//! its [`Dialect`].

mod accept;
mod counts;
mod dead_letters;
mod executions;
mod lanes;
mod outbox;
mod queue;
mod roles;
mod runs;
pub(super) mod transfer;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        dialect::Dialect,
        schema::{instances, schema_info},
    },
    dialect::{Conn, Db},
};
use crate::{error::Error, model::executions::Status};

const ACCEPTED: &str = Status::Accepted.as_str();
const RUNNING: &str = Status::Running.as_str();

/// The oldest program version that may use the schema.
pub(super) async fn oldest_program(conn: &mut Conn) -> Result<String, Error> {
    Ok(schema_info::table.select(schema_info::oldest_program).first(conn).await?)
}

/// Writes this instance's row.
pub(super) async fn touch_instance(conn: &mut Conn, instance: &str) -> Result<(), Error> {
    let seen_at = Db::now(conn).await?;
    diesel::insert_into(instances::table)
        .values((instances::id.eq(instance), instances::seen_at.eq(seen_at)))
        .on_conflict(instances::id)
        .do_update()
        .set(instances::seen_at.eq(seen_at))
        .execute(conn)
        .await?;
    Ok(())
}

/// Counting costs time for every row, and the exact number beyond the bound does not matter.
async fn count_up_to(conn: &mut Conn, rows: &'static str, most: i64) -> Result<i64, Error> {
    use diesel::sql_types::BigInt;

    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        rows: i64,
    }
    let bound = most.saturating_add(1);
    let text =
        format!("SELECT count(*) AS rows FROM (SELECT 1 FROM {rows} LIMIT {bound}) AS bounded");
    let count: Count = diesel::sql_query(text).get_result(conn).await?;
    Ok(count.rows)
}
