//! Accepted events and the lanes in which they are delivered.

use std::time::Duration;

use async_trait::async_trait;
use diesel::{dsl::count_star, prelude::*};
use diesel_async::RunQueryDsl;

use super::{
    super::{
        super::{
            DeliveredEvent, Lane, Outbox, PendingEvents,
            dialect::Dialect,
            rows::{DEAD, DELIVERED, PENDING, PendingRow, micros, without_nul},
            schema::{lanes, outbox, relays},
        },
        dialect::{Conn, Db, locked, skip_locked, transaction},
    },
    count_up_to,
};
use crate::{
    error::Error,
    model::{
        backlog::Backlog,
        events::{LANES, Position},
    },
};

fn numbers(lanes: &[Lane]) -> Vec<i32> {
    lanes.iter().map(|lane| lane.number).collect()
}

fn list(numbers: &[i32]) -> String {
    numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

/// The first waiting events in these lanes that fit the bounds. The database knows lengths without
/// reading the values, so only returned events are read.
fn first_that_fit(lanes: &[i32], limit: i64, max_bytes: i64) -> String {
    let waiting = format!("FROM outbox WHERE state = '{PENDING}' AND lane IN ({})", list(lanes));
    format!(
        "SELECT seq, lane, event {waiting} AND seq <= (\
             SELECT max(seq) FROM (\
                 SELECT seq, bytes, sum(bytes) OVER (ORDER BY seq) AS total FROM (\
                     SELECT seq, octet_length(event) AS bytes {waiting} ORDER BY seq LIMIT {limit}\
                 ) AS measured\
             ) AS summed WHERE total = bytes OR total <= {max_bytes}\
         ) ORDER BY seq"
    )
}

fn claimed(rows: Vec<(i32, i64)>) -> Vec<Lane> {
    rows.into_iter().map(|(number, fence)| Lane { number, fence }).collect()
}

/// The lanes that `owner` still holds with these fencing numbers, locked until the transaction
/// ends.
async fn still_held(conn: &mut Conn, owner: &str, held: &[Lane]) -> Result<Vec<i32>, Error> {
    let query = lanes::table
        .filter(lanes::owner.eq(owner).and(lanes::lane.eq_any(numbers(held))))
        .select((lanes::lane, lanes::fence))
        .order(lanes::lane.asc());
    let mut found = claimed(locked!(query).load(conn).await?);
    found.retain(|lane| held.contains(lane));
    Ok(numbers(&found))
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
         WHERE outbox.seq = given.column1 AND lane IN ({}) AND {only}",
        rows.join(", "),
        list(&still)
    );
    Ok(diesel::sql_query(statement).execute(conn).await?)
}

/// The fair share of lanes for each recently seen process.
async fn fair_share(conn: &mut Conn, owner: &str, now: i64, lease: i64) -> Result<i64, Error> {
    diesel::insert_into(relays::table)
        .values((relays::owner.eq(owner), relays::seen_at.eq(now)))
        .on_conflict(relays::owner)
        .do_update()
        .set(relays::seen_at.eq(now))
        .execute(conn)
        .await?;
    if Db::SERVES_ONE_PROCESS {
        return Ok(i64::from(LANES));
    }
    let alive = relays::seen_at.gt(now.saturating_sub(lease));
    let alive: i64 = relays::table.filter(alive).select(count_star()).first(conn).await?;
    // A lease of zero length has already ended, even for its owner.
    let alive = alive.max(1);
    Ok((i64::from(LANES) + alive - 1) / alive)
}

async fn claim(conn: &mut Conn, owner: &str, now: i64, lease: i64) -> Result<Vec<Lane>, Error> {
    let until = now.saturating_add(lease);
    let share = fair_share(conn, owner, now, lease).await?;
    let share = usize::try_from(share).unwrap_or(usize::MAX);
    let mine = lanes::owner.eq(owner).and(lanes::claimed_until.gt(now));
    let renewed = diesel::update(lanes::table.filter(mine))
        .set(lanes::claimed_until.eq(until))
        .returning((lanes::lane, lanes::fence))
        .get_results(conn)
        .await?;
    let mut held = claimed(renewed);
    held.sort_unstable_by_key(|lane| lane.number);
    if held.len() > share {
        let surplus = numbers(&held.split_off(share));
        let surplus = lanes::lane.eq_any(surplus).and(lanes::owner.eq(owner));
        diesel::update(lanes::table.filter(surplus))
            .set(lanes::claimed_until.eq(0))
            .execute(conn)
            .await?;
    } else if held.len() < share {
        // In a single-process database, claims of another process were left by one that died.
        let free_before = if Db::SERVES_ONE_PROCESS { i64::MAX } else { now };
        let query = lanes::table
            .filter(lanes::claimed_until.le(free_before).and(lanes::lane.ne_all(numbers(&held))))
            .select(lanes::lane)
            .order(lanes::lane.asc())
            .limit(i64::try_from(share - held.len()).unwrap_or(i64::MAX));
        let free: Vec<i32> = skip_locked!(query).load(conn).await?;
        let taken = diesel::update(lanes::table.filter(lanes::lane.eq_any(free)))
            .set((
                lanes::owner.eq(owner),
                lanes::claimed_until.eq(until),
                lanes::fence.eq(lanes::fence + 1),
            ))
            .returning((lanes::lane, lanes::fence))
            .get_results(conn)
            .await?;
        held.extend(claimed(taken));
    }
    Ok(held)
}

#[async_trait]
impl Outbox for Db {
    async fn claim_lanes(&self, owner: &str, lease: Duration) -> Result<Vec<Lane>, Error> {
        let mut conn = self.writer().await?;
        let (now, lease) = (Db::now(&mut conn).await?, micros(lease));
        let claimed: Result<Vec<Lane>, Error> =
            transaction!(conn, async |conn| claim(conn, owner, now, lease).await);
        claimed
    }

    async fn release_lanes(&self, owner: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        diesel::update(lanes::table.filter(lanes::owner.eq(owner)))
            .set(lanes::claimed_until.eq(0))
            .execute(&mut conn)
            .await?;
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
        let statement = first_that_fit(&numbers(held), limit, max_bytes);
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
        let mut conn = self.reader().await?;
        let mut places = Vec::new();
        for lane in held {
            let newest: Option<Option<String>> = outbox::table
                .filter(outbox::state.eq(DELIVERED).and(outbox::lane.eq(lane.number)))
                .select(outbox::position)
                .order(outbox::seq.desc())
                .first(&mut conn)
                .await
                .optional()?;
            places.extend(newest.flatten().and_then(|text| text.parse::<Position>().ok()));
        }
        Ok(places)
    }

    async fn delivered_places(
        &self,
        held: &[Lane],
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Position)>, Error> {
        let mut conn = self.reader().await?;
        let of_ours = outbox::lane.eq_any(numbers(held)).and(outbox::position.is_not_null());
        let rows: Vec<(i64, Option<String>)> = outbox::table
            .filter(outbox::state.eq(DELIVERED).and(outbox::seq.gt(after)).and(of_ours))
            .select((outbox::seq, outbox::position))
            .order(outbox::seq.asc())
            .limit(limit)
            .load(&mut conn)
            .await?;
        let read = |(seq, place): (i64, Option<String>)| Some((seq, place?.parse().ok()?));
        Ok(rows.into_iter().filter_map(read).collect())
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

    async fn backlog(&self, most: i64) -> Result<Backlog, Error> {
        let mut conn = self.reader().await?;
        let now = Db::now(&mut conn).await?;
        let oldest: Option<i64> = outbox::table
            .filter(outbox::state.eq(PENDING))
            .select(outbox::created_at)
            .order(outbox::seq.asc())
            .first(&mut conn)
            .await
            .optional()?;
        Ok(Backlog {
            rows: count_up_to(&mut conn, "outbox WHERE state = 'pending'", most).await?,
            oldest: oldest.map(|at| Duration::from_micros(u64::try_from(now - at).unwrap_or(0))),
            dead: count_up_to(&mut conn, "outbox WHERE state = 'dead'", most).await?,
        })
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
