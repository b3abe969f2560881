//! Accepted events and the lanes in which they are delivered.

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            DeliveredEvent, Lane, Outbox, PendingEvents,
            dialect::Dialect,
            rows::{DEAD, DELIVERED, PENDING, PendingRow, micros, without_nul},
            schema::{outbox, relays},
        },
        dialect::{Conn, Db, transaction},
    },
    lanes::{self, column_and_values, in_lanes, lane_of_row, readable_in, still_held},
};
use crate::{
    error::Error,
    model::{events::Position, lanes::Lanes},
};

/// The first waiting events in these lanes that fit the bounds. The database knows lengths without
/// reading the values, so only returned events are read.
fn first_that_fit(held: &[Lane], limit: i64, max_bytes: i64) -> String {
    let waiting = format!("FROM outbox WHERE state = '{PENDING}' AND {}", readable_in(held));
    let lane = lane_of_row(held);
    format!(
        "SELECT seq, {lane} AS lane, event {waiting} AND seq <= (\
             SELECT max(seq) FROM (\
                 SELECT seq, bytes, sum(bytes) OVER (ORDER BY seq) AS total FROM (\
                     SELECT seq, octet_length(event) AS bytes {waiting} ORDER BY seq LIMIT {limit}\
                 ) AS measured\
             ) AS summed WHERE total = bytes OR total <= {max_bytes}\
         ) ORDER BY seq"
    )
}

/// The newest place of each of these lanes. One statement looks once into the index for each slot.
fn newest_of_each(held: &[Lane]) -> String {
    let (column, values) = column_and_values(held);
    let values: Vec<String> = values.iter().map(|value| format!("({value})")).collect();
    let number = held.first().map_or(Lanes::SIXTEEN, |lane| lane.of).number();
    format!(
        "SELECT seq, position FROM outbox WHERE position IS NOT NULL AND seq IN (\
             SELECT max(newest) FROM (\
                 SELECT given.column1 % {number} AS lane, (\
                     SELECT seq FROM outbox AS one \
                     WHERE one.state = '{DELIVERED}' AND one.{column} = given.column1 \
                     ORDER BY seq DESC LIMIT 1\
                 ) AS newest FROM (VALUES {}) AS given\
             ) AS found GROUP BY lane\
         )",
        values.join(", ")
    )
}

/// Changes those of `events` that satisfy `only` and lie in lanes that `owner` still holds; gives
/// their number. One statement serves all, each with its own place as `given.column2`; its text
/// holds nothing but numbers.
async fn update_held(
    conn: &mut Conn,
    (owner, held): (&str, &[Lane]),
    events: &[(i64, Position)],
    set: &str,
    only: &str,
) -> Result<usize, Error> {
    let still = still_held(conn, owner, held).await?;
    if still.is_empty() || events.is_empty() {
        return Ok(0);
    }
    let rows: Vec<String> =
        events.iter().map(|(seq, position)| format!("({seq}, '{position}')")).collect();
    let statement = format!(
        "UPDATE outbox SET {set} FROM (VALUES {}) AS given \
         WHERE outbox.seq = given.column1 AND {} AND {only}",
        rows.join(", "),
        in_lanes(&still)
    );
    Ok(diesel::sql_query(statement).execute(conn).await?)
}

/// A delivered event.
#[derive(QueryableByName)]
#[diesel(table_name = outbox)]
struct PlaceRow {
    seq: i64,
    position: Option<String>,
}

impl PlaceRow {
    fn read(self) -> Option<(i64, Position)> {
        Some((self.seq, self.position?.parse().ok()?))
    }
}

#[async_trait]
impl Outbox for Db {
    async fn want_lanes(&self, lanes: Lanes) -> Result<Lanes, Error> {
        let mut conn = self.writer().await?;
        let before: Result<Lanes, Error> =
            transaction!(conn, async |conn| lanes::want(conn, lanes).await);
        before
    }

    async fn claim_lanes(&self, owner: &str, lease: Duration) -> Result<Vec<Lane>, Error> {
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let turn = lanes::Turn { owner, now, lease: micros(lease) };
        turn.fill_slots(&mut conn).await?;
        let claimed: Result<Vec<Lane>, Error> =
            transaction!(conn, async |conn| turn.claim(conn).await);
        claimed
    }

    async fn release_lanes(&self, owner: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        lanes::release(&mut conn, owner).await?;
        diesel::delete(relays::table.find(owner)).execute(&mut conn).await?;
        Ok(())
    }

    async fn pending_events(
        &self,
        held: &[Lane],
        limit: i64,
        max_bytes: i64,
    ) -> Result<PendingEvents, Error> {
        if held.is_empty() {
            return Ok(PendingEvents::default());
        }
        let mut conn = self.reader().await?;
        let statement = first_that_fit(held, limit, max_bytes);
        let rows: Vec<PendingRow> = diesel::sql_query(statement).load(&mut conn).await?;
        let mut pending = PendingEvents::default();
        for row in rows {
            match row.read() {
                Ok(event) => pending.readable.push(event),
                Err(event) => pending.unreadable.push(event),
            }
        }
        Ok(pending)
    }

    async fn mark_delivered(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let delivered_at = Db::now(&mut conn).await?;
        let set = format!(
            "state = '{DELIVERED}', delivered_at = {delivered_at}, position = given.column2"
        );
        let only = format!("state = '{PENDING}'");
        let marked: Result<usize, Error> = transaction!(conn, async |conn| {
            update_held(conn, (owner, held), events, &set, &only).await
        });
        marked
    }

    async fn delivered_events(
        &self,
        before: Option<i64>,
        limit: i64,
    ) -> Result<Vec<DeliveredEvent>, Error> {
        let mut conn = self.reader().await?;
        let rows: Vec<(i64, Option<String>, String)> = outbox::table
            .filter(outbox::state.eq(DELIVERED).and(outbox::seq.lt(before.unwrap_or(i64::MAX))))
            .select((outbox::seq, outbox::position, outbox::event))
            .order(outbox::seq.desc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        let read = |(seq, position, json): (i64, Option<String>, String)| {
            let position = position.and_then(|text| text.parse().ok());
            DeliveredEvent { seq, position, json }
        };
        Ok(rows.into_iter().map(read).collect())
    }

    async fn newest_places(&self, held: &[Lane]) -> Result<Vec<Position>, Error> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.reader().await?;
        let rows: Vec<PlaceRow> = diesel::sql_query(newest_of_each(held)).load(&mut conn).await?;
        Ok(rows.into_iter().filter_map(PlaceRow::read).map(|(_, place)| place).collect())
    }

    async fn delivered_places(
        &self,
        held: &[Lane],
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Position)>, Error> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let mut conn = self.reader().await?;
        let statement = format!(
            "SELECT seq, position FROM outbox WHERE state = '{DELIVERED}' AND seq > {after} \
             AND position IS NOT NULL AND {} ORDER BY seq LIMIT {limit}",
            in_lanes(held)
        );
        let rows: Vec<PlaceRow> = diesel::sql_query(statement).load(&mut conn).await?;
        Ok(rows.into_iter().filter_map(PlaceRow::read).collect())
    }

    async fn send_again(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error> {
        let mut conn = self.writer().await?;
        let set = format!("state = '{PENDING}', delivered_at = NULL, position = NULL");
        let only = format!("state = '{DELIVERED}' AND position = given.column2");
        let returned: Result<usize, Error> = transaction!(conn, async |conn| {
            update_held(conn, (owner, held), events, &set, &only).await
        });
        returned
    }

    async fn note_refusal(
        &self,
        owner: &str,
        lane: Lane,
        seq: i64,
        error: &str,
        most: i32,
    ) -> Result<bool, Error> {
        let mut conn = self.writer().await?;
        let noted: Result<bool, Error> = transaction!(conn, async |conn| {
            if still_held(conn, owner, &[lane]).await?.is_empty() {
                return Ok(false);
            }
            let row = outbox::table.find(seq).filter(outbox::state.eq(PENDING));
            let refusals: Option<i32> = diesel::update(row)
                .set((
                    outbox::refusals.eq(outbox::refusals + 1),
                    outbox::error.eq(without_nul(error)),
                ))
                .returning(outbox::refusals)
                .get_result(conn)
                .await
                .optional()?;
            let dead = refusals.is_some_and(|refusals| refusals >= most);
            if dead {
                diesel::update(outbox::table.find(seq))
                    .set(outbox::state.eq(DEAD))
                    .execute(conn)
                    .await?;
            }
            Ok(dead)
        });
        noted
    }

    async fn remove_delivered(&self, older_than: Duration, limit: i64) -> Result<usize, Error> {
        let mut conn = self.reader().await?;
        let before = Db::now(&mut conn).await?.saturating_sub(micros(older_than));
        let old: Vec<i64> = outbox::table
            .filter(outbox::state.eq(DELIVERED).and(outbox::delivered_at.le(before)))
            .select(outbox::seq)
            .order((outbox::delivered_at.asc(), outbox::seq.asc()))
            .limit(limit)
            .load(&mut conn)
            .await?;
        drop(conn);
        if old.is_empty() {
            return Ok(0);
        }
        let mut conn = self.writer().await?;
        // An event queued for delivery again in the meantime stays.
        let delivered = outbox::seq.eq_any(old).and(outbox::state.eq(DELIVERED));
        Ok(diesel::delete(outbox::table.filter(delivered)).execute(&mut conn).await?)
    }
}
