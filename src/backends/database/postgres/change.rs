//! Changes the status of many executions with one statement.

use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    sql_types::{BigInt, Integer, Nullable, Text},
};
use diesel_async::RunQueryDsl;

use super::{
    super::{StatusChange, rows::without_nul},
    columns::rows,
    dialect::{Conn, NOW},
    new_events::{INSERT, NewEvents},
};
use crate::{
    error::Error,
    model::{json::Json, time::Timestamp},
};

/// Makes those of the changes that lead forward, with their announcements. Returns the ids of the
/// changed executions.
pub(super) async fn change(
    conn: &mut Conn,
    changes: &[&StatusChange],
) -> Result<Vec<String>, Error> {
    Ok(ChangeAll::new(changes).load(conn).await?)
}

rows! {
    #[doc = "The changes."]
    Outcomes of NewOutcome {
        item: i32 as Integer,
        id: &'a str as Text,
        status: &'a str as Text,
        result: Option<&'a str> as Nullable<Text>,
        error: Option<String> as Nullable<Text>,
        started_at: Option<i64> as Nullable<BigInt>,
        finished_at: Option<i64> as Nullable<BigInt>,
    }
}

#[derive(Default)]
struct ChangeAll<'a> {
    ids: Vec<&'a str>,
    outcomes: Outcomes<'a>,
    announcements: NewEvents<'a>,
}

impl<'a> ChangeAll<'a> {
    fn new(changes: &[&'a StatusChange]) -> Self {
        let mut all = Self::default();
        for (item, change) in (0..).zip(changes) {
            all.ids.push(&change.id);
            all.outcomes.push(NewOutcome::new(item, change));
            all.announcements.add(item, &change.announcements);
        }
        all
    }
}

impl<'a> NewOutcome<'a> {
    fn new(item: i32, change: &'a StatusChange) -> Self {
        let outcome = &change.outcome;
        Self {
            item,
            id: &change.id,
            status: outcome.status.as_str(),
            result: outcome.result.as_ref().map(Json::text),
            error: outcome.error.as_deref().map(without_nul),
            started_at: outcome.started_at.map(Timestamp::as_microsecond),
            finished_at: outcome.finished_at.map(Timestamp::as_microsecond),
        }
    }
}

impl QueryFragment<Pg> for ChangeAll<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        // Locked in one order, so that two processes do not wait for each other.
        out.push_sql("WITH clock AS MATERIALIZED (SELECT ");
        out.push_sql(NOW);
        out.push_sql(
            " AS now), \
             held AS MATERIALIZED (SELECT id FROM executions WHERE id = ANY(",
        );
        out.push_bind_param::<diesel::sql_types::Array<Text>, _>(&self.ids)?;
        out.push_sql(
            ") ORDER BY id FOR UPDATE), \
             changed AS (UPDATE executions SET status = new.status, result = new.result, \
                error = new.error, confirmed_at = now, \
                started_at = COALESCE(executions.started_at, new.started_at), \
                finished_at = CASE WHEN new.finished_at IS NULL THEN NULL ELSE GREATEST(\
                    new.finished_at, COALESCE(executions.started_at, new.started_at)) END \
             FROM clock, held, ",
        );
        self.outcomes.walk(&mut out)?;
        out.push_sql(
            " WHERE executions.id = held.id AND new.id = held.id \
             AND (executions.status = 'accepted' \
                OR (executions.status = 'running' AND new.status <> 'running')) \
             RETURNING executions.id, new.item), \
             announced AS (",
        );
        out.push_sql(INSERT);
        out.push_sql("clock, ");
        self.announcements.walk(&mut out)?;
        out.push_sql(
            " WHERE item IN (SELECT item FROM changed) ORDER BY item, place \
             ON CONFLICT DO NOTHING) \
             SELECT id FROM changed",
        );
        Ok(())
    }
}

impl QueryId for ChangeAll<'_> {
    type QueryId = ChangeAll<'static>;

    const HAS_STATIC_QUERY_ID: bool = true;
}

impl Query for ChangeAll<'_> {
    type SqlType = Text;
}
