//! Detects that the broker has lost acknowledged events.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::{Claims, Shared};
use crate::{backends::database::Lane, error::Error, model::events::Position};

/// The interval at which acknowledged events are looked for on the broker while no new ones arrive.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Delivered events that are looked for at once.
const LOOKED_AT_ONCE: i64 = 500;
impl Shared {
    /// Checks that the broker still has the events it acknowledged last, before they are forgotten
    /// for `newer`. If not, all events that it has lost wait for delivery again, and this returns
    /// true.
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
            self.send_lost_again(&claims.lanes).await?;
            // The remaining events may be lost as well, before anything new is delivered.
            claims.places = self.newest_places(&claims.lanes).await?;
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
        self.broker.lost(places).await
    }

    /// Oldest first, so that a process that takes over midway finds them in order. Only in lanes of
    /// this process: other processes look after theirs.
    async fn send_lost_again(&self, held: &[Lane]) -> Result<(), Error> {
        let owner = &*self.owner;
        let (mut after, mut sent_again) = (0, 0);
        loop {
            let page = self.database.delivered_places(held, after, LOOKED_AT_ONCE).await?;
            let Some((newest, _)) = page.last() else { break };
            after = *newest;
            let places: Vec<Position> = page.iter().map(|(_, place)| *place).collect();
            let lost: BTreeSet<Position> = self.lost(&places).await?.into_iter().collect();
            let events: Vec<(i64, Position)> =
                page.into_iter().filter(|(_, place)| lost.contains(place)).collect();
            let events = &events;
            sent_again += self.database.send_again(owner, held, events).await?;
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
