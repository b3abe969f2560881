//! Accepting.

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    super::world::{ExecutionRow, OutboxRow, State, Truth},
    SimulatedDatabase,
};
use crate::{backends::database::*, error::Error, model::lanes::Lanes};

impl Truth {
    /// Stores an event, once.
    pub(super) fn announce(&mut self, new: &NewEvent) {
        let event = &new.event;
        if !self.names.insert((event.source.clone(), event.id.clone())) {
            return;
        }
        let seq = self.outbox.last_key_value().map_or(1, |(last, _)| last + 1);
        let row = OutboxRow {
            lane: Lanes::SIXTEEN.lane_of(event.slot()),
            event: event.clone(),
            state: State::Pending,
            refusals: 0,
        };
        self.outbox.insert(seq, row);
        self.pending.insert(seq);
    }

    fn admit(&mut self, admission: &Admission) -> Acceptance {
        let Some(key) = &admission.key else { return self.store(&admission.work) };
        let name = (key.scope.clone(), key.key.clone());
        if let Some((first, answer)) = self.keys.get(&name) {
            return if *first == key.fingerprint {
                Acceptance::Answered(answer.clone())
            } else {
                Acceptance::KeyReused
            };
        }
        let acceptance = self.store(&admission.work);
        if acceptance == Acceptance::Stored {
            self.keys.insert(name, (key.fingerprint.clone(), key.answer.clone()));
        }
        acceptance
    }

    fn store(&mut self, work: &Work) -> Acceptance {
        match work {
            Work::Events(events) => events.iter().for_each(|event| self.announce(event)),
            Work::Execution(new) => {
                let row = self.executions.get(&new.execution.id);
                if row.is_some_and(|row| row.execution.request_id != new.execution.request_id) {
                    return Acceptance::IdTaken;
                }
                if row.is_none() {
                    let row = accepted(new);
                    self.executions.insert(new.execution.id.clone(), row);
                    self.announce(&new.announcement);
                }
            }
        }
        Acceptance::Stored
    }
}

fn accepted(new: &NewRecord) -> ExecutionRow {
    let (claim, now) = (new.claim.as_ref(), Instant::now());
    ExecutionRow {
        execution: new.execution.clone(),
        claimed_until: claim.map_or(now, |claim| now + claim.lease),
        fence: claim.map_or(0, |_| Claim::FIRST_FENCE),
        tried_at: claim.map(|_| now),
        refusals: 0,
        ending: None,
        is_rejected: false,
    }
}

#[async_trait]
impl Accept for SimulatedDatabase {
    async fn accept(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        let admit = |truth: &mut Truth, _: &_| {
            Ok(batch.iter().map(|admission| truth.admit(admission)).collect())
        };
        self.0.call("accept", admit).await
    }

    async fn forget_keys(&self, _limit: i64) -> Result<usize, Error> {
        self.0.call("forget_keys", |_, _| Ok(0)).await
    }
}
