//! Changes the status of many executions with one statement.

use diesel::{
    QueryResult,
    pg::Pg,
    query_builder::{AstPass, Query, QueryFragment, QueryId},
    sql_types::{BigInt, Bool, Integer, Nullable, Text},
};
use diesel_async::RunQueryDsl;

use super::{
    super::{NewEvent, StatusChange, rows::without_nul},
    columns::rows,
    dialect::Conn,
};
use crate::{
    error::Error,
    model::{json::Json, lanes::Lanes, time::Timestamp},
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
        id: &'a str as Text,
        status: &'a str as Text,
        result: Option<&'a str> as Nullable<Text>,
        error: Option<String> as Nullable<Text>,
        started_at: Option<i64> as Nullable<BigInt>,
        finished_at: Option<i64> as Nullable<BigInt>,
    }
}

rows! {
    #[doc = "The events that announce the changes."]
    Announcements of Announcement {
        execution: &'a str as Text,
        place: i32 as Integer,
        lane: i32 as Integer,
        slot: i32 as Integer,
        lifecycle: bool as Bool,
        source: &'a str as Text,
        event_id: &'a str as Text,
        content_hash: &'a str as Text,
        event: &'a str as Text,
    }
}

#[derive(Default)]
struct ChangeAll<'a> {
    ids: Vec<&'a str>,
    outcomes: Outcomes<'a>,
    announcements: Announcements<'a>,
}

impl<'a> ChangeAll<'a> {
    fn new(changes: &[&'a StatusChange]) -> Self {
        let mut all = Self::default();
        let mut place = 0;
        for change in changes {
            all.ids.push(&change.id);
            all.outcomes.push(NewOutcome::new(change));
            for announcement in &change.announcements {
                all.announcements.push(Announcement::new(&change.id, place, announcement));
                place += 1;
            }
        }
        all
    }
}

impl<'a> NewOutcome<'a> {
    fn new(change: &'a StatusChange) -> Self {
        let outcome = &change.outcome;
        Self {
            id: &change.id,
            status: outcome.status.as_str(),
            result: outcome.result.as_ref().map(Json::text),
            error: outcome.error.as_deref().map(without_nul),
            started_at: outcome.started_at.map(Timestamp::as_microsecond),
            finished_at: outcome.finished_at.map(Timestamp::as_microsecond),
        }
    }
}

impl<'a> Announcement<'a> {
    fn new(execution: &'a str, place: i32, new: &'a NewEvent) -> Self {
        let slot = new.event.slot();
        Self {
            execution,
            place,
            // For the program before this one, which knows no slots.
            lane: Lanes::SIXTEEN.lane_of(slot),
            slot,
            lifecycle: new.event.is_lifecycle(),
            source: &new.event.source,
            event_id: &new.event.id,
            content_hash: new.fingerprint.as_str(),
            event: new.event.document(),
        }
    }
}

impl QueryFragment<Pg> for ChangeAll<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        // Locked in one order, so that two processes do not wait for each other.
        out.push_sql(
            "WITH clock AS MATERIALIZED (SELECT \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now), \
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
             RETURNING executions.id), \
             announced AS (INSERT INTO outbox \
                (lane, slot, lifecycle, source, event_id, content_hash, event, state, \
                created_at, refusals) \
                SELECT lane, slot, lifecycle, source, event_id, content_hash, event, \
                    'pending', now, 0 \
                FROM clock, ",
        );
        self.announcements.walk(&mut out)?;
        out.push_sql(
            " WHERE execution IN (SELECT id FROM changed) ORDER BY place \
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
