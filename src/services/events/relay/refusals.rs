//! Events that the broker refuses as such, and events that cannot be read.

use std::collections::BTreeSet;

use super::{Claims, Shared};
use crate::{
    backends::database::{Lane, PendingEvent, UnreadableEvent},
    error::Error,
};

impl Shared {
    /// Delivers a batch of which the broker has refused some event, in parts: a part that is refused
    /// too is halved, until the refused events are alone. A lane stops at its first one.
    pub(super) async fn hand_over_in_parts(
        &self,
        claims: &mut Claims,
        batch: &[PendingEvent],
    ) -> Result<usize, Error> {
        let held = claims.lanes.clone();
        let mut stopped = BTreeSet::new();
        let mut done = 0;
        let mut parts = halves(batch.iter().collect());
        while let Some(part) = parts.pop() {
            let part: Vec<&PendingEvent> =
                part.into_iter().filter(|pending| !stopped.contains(&pending.lane)).collect();
            let Some(first) = part.first() else { continue };
            // Many parts may take longer than a lease.
            self.claim(claims).await?;
            if claims.lanes != held {
                break;
            }
            match self.publish(&part).await {
                Ok(places) => done += self.mark(&held, &part, &places).await?,
                Err(error) if !error.kind().refuses_call() => return Err(error),
                Err(_) if part.len() > 1 => parts.extend(halves(part)),
                Err(error) => {
                    let dead = self.refused(&held, first, &error).await?;
                    done += usize::from(dead);
                    if !dead {
                        stopped.insert(first.lane);
                    }
                }
            }
        }
        Ok(done)
    }

    /// Makes events that cannot be read dead letters at once: no further attempt can end otherwise,
    /// and events accepted after them must not wait.
    pub(super) async fn set_aside(
        &self,
        held: &[Lane],
        unreadable: &[UnreadableEvent],
    ) -> Result<(), Error> {
        for UnreadableEvent { seq, lane, reason } in unreadable {
            if self.note_refusal(held, (*seq, *lane), reason, 1).await? {
                tracing::error!(
                    seq,
                    reason,
                    "an accepted event is unreadable, it is a dead letter"
                );
            }
        }
        Ok(())
    }

    /// Counts a refusal. Returns true when the event is now a dead letter.
    async fn note_refusal(
        &self,
        held: &[Lane],
        (seq, lane): (i64, i32),
        message: &str,
        most: i32,
    ) -> Result<bool, Error> {
        let Some(&lane) = held.iter().find(|held| held.number == lane) else {
            return Ok(false);
        };
        let owner = &*self.owner;
        self.database.note_refusal(owner, lane, seq, message, most).await
    }

    async fn refused(
        &self,
        held: &[Lane],
        pending: &PendingEvent,
        error: &Error,
    ) -> Result<bool, Error> {
        let (place, most) = ((pending.seq, pending.lane), self.config.max_refusals);
        let dead = self.note_refusal(held, place, &error.to_string(), most).await?;
        if dead {
            let (id, source) = (&pending.event.id, &pending.event.source);
            tracing::error!(event.id = id, event.source = source, %error,
                "the broker refused an event for good, it is a dead letter");
        }
        Ok(dead)
    }
}

/// The parts in which a refused part is delivered, the first at the end.
fn halves(mut part: Vec<&PendingEvent>) -> Vec<Vec<&PendingEvent>> {
    let second = part.split_off(part.len() / 2);
    vec![second, part]
}
