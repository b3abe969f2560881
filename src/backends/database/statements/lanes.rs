//! The lanes of the outbox: their claims, and changes of their number.
//!
//! The previous program knows sixteen lanes, finds the lane of an event in its column `lane`, and
//! takes any claim that has ended. So while there are sixteen lanes, everything is as it knows it.
//! While there are more, all claims end far in the future for it, and it finds no free lane.

use diesel::{dsl::exists, prelude::*};
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        Lane,
        dialect::Dialect,
        rows::PENDING,
        schema::{lanes, outbox, outbox_settings, relays},
    },
    dialect::{Conn, Db, locked, skip_locked, transaction},
};
use crate::{
    error::{Error, ErrorKind},
    model::{
        events::Event,
        lanes::{Lanes, rank},
    },
};

/// Added to the times of all claims while there are other than sixteen lanes. Half of the range is
/// far beyond any time, and leaves room for one.
const HIDDEN: i64 = 1 << 62;

/// Events without a slot that are given one at once, and how often in one turn.
const FILL_AT_ONCE: i64 = 500;
const FILLS: usize = 10;

/// A time as it is stored in the claims.
fn stored(time: i64, lanes: Lanes) -> i64 {
    if lanes == Lanes::SIXTEEN { time } else { time.saturating_add(HIDDEN) }
}

fn list(numbers: &[i32]) -> String {
    numbers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

/// The column by which events of these lanes are found, and its values.
pub(super) fn column_and_values(held: &[Lane]) -> (&'static str, Vec<i32>) {
    let numbers = held.iter().map(|lane| lane.number);
    match held.first() {
        Some(lane) if lane.of != Lanes::SIXTEEN => {
            ("slot", numbers.flat_map(|number| lane.of.slots_of(number)).collect())
        }
        // Events without a slot have a lane.
        _ => ("lane", numbers.collect()),
    }
}

/// The condition that an event is in one of these lanes.
pub(super) fn in_lanes(held: &[Lane]) -> String {
    let (column, values) = column_and_values(held);
    format!("{column} IN ({})", list(&values))
}

/// The condition that a waiting event is in one of these lanes and that every earlier one has been
/// assigned to its lane. An event of the previous program, which has no slot yet, may be of the
/// same subject as any later one.
pub(super) fn readable_in(held: &[Lane]) -> String {
    let is_in = in_lanes(held);
    if held.first().is_none_or(|lane| lane.of == Lanes::SIXTEEN) {
        return is_in;
    }
    format!(
        "{is_in} AND seq < coalesce(\
             (SELECT min(seq) FROM outbox WHERE slot IS NULL AND state = '{PENDING}'), {})",
        i64::MAX
    )
}

/// The number of an event's lane, as an expression.
pub(super) fn lane_of_row(held: &[Lane]) -> String {
    match held.first() {
        Some(lane) if lane.of != Lanes::SIXTEEN => format!("slot % {}", lane.of.number()),
        _ => "lane".to_owned(),
    }
}

fn numbers(lanes: &[Lane]) -> Vec<i32> {
    lanes.iter().map(|lane| lane.number).collect()
}

fn claimed(rows: Vec<(i32, i64)>, of: Lanes) -> Vec<Lane> {
    rows.into_iter().map(|(number, fence)| Lane { number, of, fence }).collect()
}

fn known(number: i32) -> Result<Lanes, Error> {
    Lanes::new(number).ok_or_else(|| {
        let message = format!("another version has divided the outbox into {number} lanes");
        Error::new(ErrorKind::Incompatible, message)
    })
}

/// The lanes that `owner` still holds with these fencing numbers, locked until the transaction
/// ends.
pub(super) async fn still_held(
    conn: &mut Conn,
    owner: &str,
    held: &[Lane],
) -> Result<Vec<Lane>, Error> {
    let query = lanes::table
        .filter(lanes::owner.eq(owner).and(lanes::lane.eq_any(numbers(held))))
        .select((lanes::lane, lanes::fence))
        .order(lanes::lane.asc());
    let found: Vec<(i32, i64)> = locked!(query).load(conn).await?;
    // A change of the number of lanes changes every fencing number.
    Ok(held.iter().filter(|lane| found.contains(&(lane.number, lane.fence))).copied().collect())
}

async fn in_use(conn: &mut Conn) -> Result<Lanes, Error> {
    known(lanes::table.select(lanes::of_lanes).order(lanes::lane.asc()).first(conn).await?)
}

async fn wanted(conn: &mut Conn) -> Result<Lanes, Error> {
    known(outbox_settings::table.select(outbox_settings::lanes).first(conn).await?)
}

/// Stores the number of lanes that is wanted, and returns the one that was.
pub(super) async fn want(conn: &mut Conn, lanes: Lanes) -> Result<Lanes, Error> {
    let before = locked!(outbox_settings::table.select(outbox_settings::lanes));
    let before: i32 = before.first(conn).await?;
    if before != lanes.number() {
        diesel::update(outbox_settings::table)
            .set(outbox_settings::lanes.eq(lanes.number()))
            .execute(conn)
            .await?;
    }
    Ok(Lanes::new(before).unwrap_or(lanes))
}

/// Releases all lanes of `owner`.
pub(super) async fn release(conn: &mut Conn, owner: &str) -> Result<(), Error> {
    let of = in_use(conn).await?;
    let free = stored(0, of);
    let held = lanes::owner.eq(owner).and(lanes::of_lanes.eq(of.number()));
    diesel::update(lanes::table.filter(held.and(lanes::claimed_until.gt(free))))
        .set(lanes::claimed_until.eq(free))
        .execute(conn)
        .await?;
    Ok(())
}

/// Returns the number of events that have a slot now.
async fn fill_some_slots(conn: &mut Conn) -> Result<usize, Error> {
    let query = outbox::table
        .filter(outbox::slot.is_null())
        .select((outbox::seq, outbox::lane, outbox::event))
        .order((outbox::state.desc(), outbox::seq.asc()))
        .limit(FILL_AT_ONCE);
    let rows: Vec<(i64, i32, String)> = skip_locked!(query).load(conn).await?;
    if rows.is_empty() {
        return Ok(0);
    }
    let slots = rows.into_iter().map(|(seq, lane, event)| {
        // An event that cannot be read keeps no order.
        let slot = Event::stored(event.into()).map_or(lane, |event| event.slot());
        format!("({seq}, {slot})")
    });
    let statement = format!(
        "UPDATE outbox SET slot = given.column2 FROM (VALUES {}) AS given \
         WHERE outbox.seq = given.column1",
        slots.collect::<Vec<_>>().join(", ")
    );
    Ok(diesel::sql_query(statement).execute(conn).await?)
}

/// The processes that share the lanes, as one of them sees them.
struct Fleet {
    rank: usize,
    processes: usize,
    /// True while the previous program is among them.
    has_previous: bool,
}

/// The turn of one process to claim lanes.
pub(super) struct Turn<'a> {
    pub(super) owner: &'a str,
    pub(super) now: i64,
    /// Its length, in microseconds.
    pub(super) lease: i64,
}

impl Turn<'_> {
    /// Assigns slots to events of the previous program, once anything but sixteen lanes needs them.
    pub(super) async fn fill_slots(&self, conn: &mut Conn) -> Result<(), Error> {
        let sixteen = Lanes::SIXTEEN;
        if in_use(conn).await? == sixteen && wanted(conn).await? == sixteen {
            return Ok(());
        }
        for _ in 0..FILLS {
            let filled: Result<usize, Error> =
                transaction!(conn, async |conn| fill_some_slots(conn).await);
            if filled? == 0 {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn claim(&self, conn: &mut Conn) -> Result<Vec<Lane>, Error> {
        let fleet = self.fleet(conn).await?;
        let mut of = in_use(conn).await?;
        let next = self.next_number(conn, &fleet).await?;
        if next != of {
            release(conn, self.owner).await?;
            if !self.change(conn, of, next).await? {
                return Ok(Vec::new());
            }
            of = next;
        }
        self.claim_share(conn, of, of.share(fleet.rank, fleet.processes)).await
    }

    /// Notes that this process is alive, and finds the others that are.
    async fn fleet(&self, conn: &mut Conn) -> Result<Fleet, Error> {
        let seen = (relays::seen_at.eq(self.now), relays::knows_slots.eq(true));
        diesel::insert_into(relays::table)
            .values((relays::owner.eq(self.owner), seen))
            .on_conflict(relays::owner)
            .do_update()
            .set(seen)
            .execute(conn)
            .await?;
        if Db::SERVES_ONE_PROCESS {
            return Ok(Fleet { rank: 0, processes: 1, has_previous: false });
        }
        let alive: Vec<(String, bool)> = relays::table
            .filter(relays::seen_at.gt(self.now.saturating_sub(self.lease)))
            .select((relays::owner, relays::knows_slots))
            .load(conn)
            .await?;
        let (rank, processes) = rank(self.owner, alive.iter().map(|(owner, _)| &**owner));
        let has_previous = alive.iter().any(|(_, knows_slots)| !knows_slots);
        Ok(Fleet { rank, processes, has_previous })
    }

    /// The number of lanes that there should be now.
    async fn next_number(&self, conn: &mut Conn, fleet: &Fleet) -> Result<Lanes, Error> {
        let wanted = wanted(conn).await?;
        if wanted == Lanes::SIXTEEN || fleet.has_previous {
            return Ok(Lanes::SIXTEEN);
        }
        let without_slot = exists(outbox::table.filter(outbox::slot.is_null()));
        let is_missing: bool = diesel::select(without_slot).get_result(conn).await?;
        if is_missing { in_use(conn).await } else { Ok(wanted) }
    }

    /// Divides the slots into another number of lanes, unless one of the present lanes is claimed.
    /// Every fencing number grows, so that no earlier claim counts.
    async fn change(&self, conn: &mut Conn, of: Lanes, next: Lanes) -> Result<bool, Error> {
        let query = lanes::table
            .select((lanes::fence, lanes::claimed_until, lanes::of_lanes))
            .order(lanes::lane.asc());
        let rows: Vec<(i64, i64, i32)> = skip_locked!(query).load(conn).await?;
        let free_until = if Db::SERVES_ONE_PROCESS { i64::MAX } else { stored(self.now, of) };
        let is_free =
            |&(_, until, number): &(i64, i64, i32)| until <= free_until && number == of.number();
        if rows.len() != usize::try_from(of.number()).unwrap_or_default()
            || !rows.iter().all(is_free)
        {
            return Ok(false);
        }
        let fence = rows.iter().map(|(fence, ..)| fence + 1).max().unwrap_or_default();
        let number = next.number();
        diesel::delete(lanes::table.filter(lanes::lane.ge(number))).execute(conn).await?;
        let fresh = (
            lanes::owner.eq(None::<String>),
            lanes::claimed_until.eq(stored(0, next)),
            lanes::fence.eq(fence),
            lanes::of_lanes.eq(number),
        );
        diesel::update(lanes::table).set(fresh.clone()).execute(conn).await?;
        for lane in of.number()..number {
            let row = (lanes::lane.eq(lane), fresh.clone());
            diesel::insert_into(lanes::table).values(row).execute(conn).await?;
        }
        tracing::info!(lanes = number, "the outbox is divided into {number} lanes");
        Ok(true)
    }

    async fn claim_share(
        &self,
        conn: &mut Conn,
        of: Lanes,
        share: usize,
    ) -> Result<Vec<Lane>, Error> {
        let (now, until) = (stored(self.now, of), stored(self.now.saturating_add(self.lease), of));
        let of_these = lanes::of_lanes.eq(of.number());
        let mine = lanes::owner.eq(self.owner).and(lanes::claimed_until.gt(now)).and(of_these);
        let renewed = diesel::update(lanes::table.filter(mine))
            .set(lanes::claimed_until.eq(until))
            .returning((lanes::lane, lanes::fence))
            .get_results(conn)
            .await?;
        let mut held = claimed(renewed, of);
        held.sort_unstable_by_key(|lane| lane.number);
        if held.len() > share {
            let surplus = numbers(&held.split_off(share));
            let surplus = lanes::lane.eq_any(surplus).and(lanes::owner.eq(self.owner));
            diesel::update(lanes::table.filter(surplus.and(of_these)))
                .set(lanes::claimed_until.eq(stored(0, of)))
                .execute(conn)
                .await?;
        } else if held.len() < share {
            // In a single-process database, claims of another process were left by one that died.
            let free_before = if Db::SERVES_ONE_PROCESS { i64::MAX } else { now };
            let query = lanes::table
                .filter(lanes::claimed_until.le(free_before).and(of_these))
                .filter(lanes::lane.ne_all(numbers(&held)))
                .select(lanes::lane)
                .order(lanes::lane.asc())
                .limit(i64::try_from(share - held.len()).unwrap_or(i64::MAX));
            let free: Vec<i32> = skip_locked!(query).load(conn).await?;
            let taken = diesel::update(lanes::table.filter(lanes::lane.eq_any(free)))
                .set((
                    lanes::owner.eq(self.owner),
                    lanes::claimed_until.eq(until),
                    lanes::fence.eq(lanes::fence + 1),
                ))
                .returning((lanes::lane, lanes::fence))
                .get_results(conn)
                .await?;
            held.extend(claimed(taken, of));
        }
        Ok(held)
    }
}
