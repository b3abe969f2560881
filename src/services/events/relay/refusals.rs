//! Events that the broker refuses as such, and events that cannot be read.

use std::collections::BTreeSet;

use super::Shared;
use crate::{
    backends::database::{Lane, PendingEvent, UnreadableEvent},
    error::Error,
};

impl Shared {
    /// Delivers in order; a lane stops at its first failure.
    pub(super) async fn hand_over_one_by_one(
        &self,
        held: &[Lane],
        batch: &[PendingEvent],
    ) -> Result<usize, Error> {
        let mut stopped = BTreeSet::new();
        let mut done = 0;
        for pending in batch {
            if stopped.contains(&pending.lane) {
                continue;
            }
            let one = std::slice::from_ref(pending);
            match self.publish(one).await {
                Ok(places) => done += self.mark(held, one, &places).await?,
                Err(error) if !error.kind().refuses_call() => return Err(error),
                Err(error) => {
                    let dead = self.refused(held, pending, &error).await?;
                    done += usize::from(dead);
                    if !dead {
                        stopped.insert(pending.lane);
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
