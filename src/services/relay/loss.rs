//! Noticing that the broker has lost what it acknowledged.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{Claims, Shared};
use crate::{connection::Operation, error::Error, model::events::Position};

const DELIVERED: Operation = Operation::idempotent("delivered_events");
const AGAIN: Operation = Operation::idempotent("send_again");
const LOST: Operation = Operation::idempotent("lost");
pub(super) const DATABASE_OPERATIONS: [Operation; 2] = [DELIVERED, AGAIN];
pub(super) const BROKER_OPERATIONS: [Operation; 1] = [LOST];

/// How often it is looked whether the broker still has what it acknowledged, while nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Delivered events that are looked for at once.
const LOOKED_AT_ONCE: i64 = 500;
impl Shared {
    /// Looks whether the broker still has what it acknowledged last, before this is forgotten for
    /// `newer`. If not, all that it has lost waits to be handed over again, and this is true.
    pub(super) async fn look_for_loss(
        &self,
        claims: &mut Claims,
        newer: Option<Position>,
    ) -> Result<bool, Error> {
        let lately = claims.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY);
        if newer.is_none() && lately {
            return Ok(false);
        }
        let lost = !self.lost(&claims.places).await?.is_empty();
        if lost {
            self.send_lost_again().await?;
            claims.places.clear();
        }
        claims.looked = Some(Instant::now());
        if let Some(newer) = newer {
            claims.places = vec![newer];
        }
        Ok(lost)
    }

    async fn lost(&self, places: &[Position]) -> Result<Vec<Position>, Error> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        self.broker.call(LOST, |broker| async move { broker.lost(places).await }).await
    }

    async fn send_lost_again(&self) -> Result<(), Error> {
        let (mut before, mut sent_again) = (None, 0);
        loop {
            let page = self
                .database
                .call(DELIVERED, |database| async move {
                    database.delivered_events(before, LOOKED_AT_ONCE).await
                })
                .await?;
            let Some(oldest) = page.last() else { break };
            before = Some(oldest.seq);
            let places: Vec<Position> = page.iter().filter_map(|event| event.position).collect();
            let lost: BTreeSet<Position> = self.lost(&places).await?.into_iter().collect();
            let events = page.iter().filter_map(|event| Some((event.seq, event.position?)));
            let events: Vec<(i64, Position)> =
                events.filter(|(_, place)| lost.contains(place)).collect();
            let events = &events;
            sent_again += self
                .database
                .call(AGAIN, |database| async move { database.send_again(events).await })
                .await?;
        }
        if sent_again > 0 {
            tracing::warn!(
                events = sent_again,
                "the broker has lost events that it had acknowledged, they are handed over again"
            );
        }
        self.depth.accepted(sent_again);
        Ok(())
    }
}
