//! Lanes, and the events in them.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    super::world::{LaneRow, OutboxRow, State, Truth, UNREADABLE, World},
    SimulatedDatabase, most,
    unused::unused,
};
use crate::{
    backends::database::*,
    error::Error,
    model::{
        events::Position,
        lanes::{Lanes, rank},
    },
};

impl Truth {
    fn held_lanes(&self, owner: &str, held: &[Lane]) -> Vec<i32> {
        let is_held = |lane: &&Lane| {
            let row = &self.lanes[most(i64::from(lane.number))];
            row.owner == owner && row.fence == lane.fence
        };
        held.iter().filter(is_held).map(|lane| lane.number).collect()
    }

    fn claim_lanes(&mut self, owner: &str, lease: Duration) -> Vec<Lane> {
        let now = Instant::now();
        self.relays.insert(owner.to_owned(), now);
        self.relays.retain(|_, seen| now - *seen < lease);
        let (rank, processes) = rank(owner, self.relays.keys().map(String::as_str));
        let share = Lanes::SIXTEEN.share(rank, processes);
        let mine = |row: &LaneRow| row.owner == owner && row.until > now;
        let mut count = self.lanes.iter().filter(|row| mine(row)).count();
        for row in &mut self.lanes {
            if mine(row) {
                if count > share {
                    count -= 1;
                    row.until = now;
                } else {
                    row.until = now + lease;
                }
            }
        }
        for row in &mut self.lanes {
            if count < share && row.until <= now {
                count += 1;
                *row =
                    LaneRow { owner: owner.to_owned(), until: now + lease, fence: row.fence + 1 };
            }
        }
        let held = (0..).zip(&self.lanes).filter(|(_, row)| mine(row));
        held.map(|(number, row)| Lane { number, of: Lanes::SIXTEEN, fence: row.fence }).collect()
    }

    /// Delivered events of these lanes, oldest first.
    fn delivered(&self, held: &[Lane]) -> impl DoubleEndedIterator<Item = (i64, Position)> {
        self.outbox.iter().filter_map(|(seq, row)| match row.state {
            State::Delivered(position) if held.iter().any(|lane| lane.number == row.lane) => {
                Some((*seq, position))
            }
            _ => None,
        })
    }

    /// The row of an event in a lane that the owner holds.
    fn row_in(&mut self, held: &[i32], seq: i64) -> Option<&mut OutboxRow> {
        self.outbox.get_mut(&seq).filter(|row| held.contains(&row.lane))
    }
}

#[async_trait]
impl Outbox for SimulatedDatabase {
    async fn want_lanes(&self, lanes: Lanes) -> Result<Lanes, Error> {
        self.0.call("want_lanes", |_, _| Ok(lanes)).await
    }

    async fn claim_lanes(&self, owner: &str, lease: Duration) -> Result<Vec<Lane>, Error> {
        self.0.call("claim_lanes", |truth, _| Ok(truth.claim_lanes(owner, lease))).await
    }

    async fn release_lanes(&self, owner: &str) -> Result<(), Error> {
        let release = |truth: &mut Truth, _: &World| {
            let now = Instant::now();
            for row in truth.lanes.iter_mut().filter(|row| row.owner == owner) {
                row.until = now;
            }
            truth.relays.remove(owner);
            Ok(())
        };
        self.0.call("release_lanes", release).await
    }

    async fn pending_events(
        &self,
        held: &[Lane],
        limit: i64,
        _max_bytes: i64,
    ) -> Result<PendingEvents, Error> {
        let read = |truth: &mut Truth, _: &World| {
            let mut found = PendingEvents::default();
            let waiting = truth.pending.iter().map(|seq| (*seq, &truth.outbox[seq]));
            let waiting =
                waiting.filter(|(_, row)| held.iter().any(|lane| lane.number == row.lane));
            for (seq, OutboxRow { lane, event, .. }) in waiting.take(most(limit)) {
                let (lane, event) = (*lane, event.clone());
                if event.kind == UNREADABLE {
                    let reason = "damaged".to_owned();
                    found.unreadable.push(UnreadableEvent { seq, lane, reason });
                } else {
                    found.readable.push(PendingEvent { seq, lane, event });
                }
            }
            Ok(found)
        };
        self.0.call("pending_events", read).await
    }

    async fn mark_delivered(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error> {
        let mark = |truth: &mut Truth, _: &World| {
            let held = truth.held_lanes(owner, held);
            let mut marked = 0;
            for (seq, position) in events {
                if let Some(row) = truth.row_in(&held, *seq)
                    && row.state == State::Pending
                {
                    row.state = State::Delivered(*position);
                    truth.pending.remove(seq);
                    marked += 1;
                }
            }
            Ok(marked)
        };
        self.0.call("mark_delivered", mark).await
    }

    async fn delivered_events(
        &self,
        _before: Option<i64>,
        _limit: i64,
    ) -> Result<Vec<DeliveredEvent>, Error> {
        unused()
    }

    async fn newest_places(&self, held: &[Lane]) -> Result<Vec<Position>, Error> {
        let find = |truth: &mut Truth, _: &World| {
            let newest = held.iter().filter_map(|lane| truth.delivered(&[*lane]).next_back());
            Ok(newest.map(|(_, position)| position).collect())
        };
        self.0.call("newest_places", find).await
    }

    async fn delivered_places(
        &self,
        held: &[Lane],
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, Position)>, Error> {
        let find = |truth: &mut Truth, _: &World| {
            let delivered = truth.delivered(held).filter(|(seq, _)| *seq > after);
            Ok(delivered.take(most(limit)).collect())
        };
        self.0.call("delivered_places", find).await
    }

    async fn send_again(
        &self,
        owner: &str,
        held: &[Lane],
        events: &[(i64, Position)],
    ) -> Result<usize, Error> {
        let send = |truth: &mut Truth, _: &World| {
            let held = truth.held_lanes(owner, held);
            let mut sent = 0;
            for (seq, position) in events {
                if let Some(row) = truth.row_in(&held, *seq)
                    && row.state == State::Delivered(*position)
                {
                    row.state = State::Pending;
                    truth.pending.insert(*seq);
                    sent += 1;
                }
            }
            Ok(sent)
        };
        self.0.call("send_again", send).await
    }

    async fn note_refusal(
        &self,
        owner: &str,
        lane: Lane,
        seq: i64,
        _error: &str,
        most: i32,
    ) -> Result<bool, Error> {
        let note = |truth: &mut Truth, _: &World| {
            if truth.held_lanes(owner, &[lane]).is_empty() {
                return Ok(false);
            }
            let row = truth.outbox.get_mut(&seq).filter(|row| row.state == State::Pending);
            let Some(row) = row else { return Ok(false) };
            row.refusals += 1;
            let is_dead = row.refusals >= most;
            if is_dead {
                row.state = State::Dead;
                truth.pending.remove(&seq);
            }
            Ok(is_dead)
        };
        self.0.call("note_refusal", note).await
    }

    async fn remove_delivered(&self, _older_than: Duration, _limit: i64) -> Result<usize, Error> {
        self.0.call("remove_delivered", |_, _| Ok(0)).await
    }
}
