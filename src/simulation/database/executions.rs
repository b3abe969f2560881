//! What runs, and what waits to be started.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    super::world::{ExecutionRow, Truth, World},
    SimulatedDatabase, most,
    unused::unused,
};
use crate::{
    backends::database::*,
    error::Error,
    model::{executions::*, time::Timestamp},
};

impl Truth {
    fn change(&mut self, change: &StatusChange, now: Timestamp) -> bool {
        let Some(row) = self.executions.get_mut(&change.id) else { return false };
        let before = row.execution.status;
        let forward = match change.outcome.status {
            Status::Accepted => false,
            Status::Running => before == Status::Accepted,
            _ => !before.is_terminal(),
        };
        if !forward {
            return false;
        }
        row.execution = row.execution.after(&change.outcome);
        row.execution.confirmed_at = Some(now);
        for announcement in &change.announcements {
            self.announce(announcement);
        }
        true
    }
}

#[async_trait]
impl ExecutionStore for SimulatedDatabase {
    async fn execution(&self, id: &str) -> Result<Option<Execution>, Error> {
        let found = |truth: &mut Truth, _: &World| {
            Ok(truth.executions.get(id).map(|row| row.execution.clone()))
        };
        self.0.call("execution", found).await
    }

    async fn executions(&self, _filter: &ListFilter) -> Result<Vec<Execution>, Error> {
        unused()
    }

    async fn change(&self, changes: &[&StatusChange]) -> Result<Vec<bool>, Error> {
        let make = |truth: &mut Truth, world: &World| {
            let now = world.now();
            Ok(changes.iter().map(|change| truth.change(change, now)).collect())
        };
        self.0.call("change", make).await
    }

    async fn confirm(&self, ids: &[String]) -> Result<usize, Error> {
        let confirm = |truth: &mut Truth, world: &World| {
            let now = world.now();
            let mut confirmed = 0;
            for id in ids {
                if let Some(row) = truth.executions.get_mut(id)
                    && row.execution.status == Status::Running
                {
                    row.execution.confirmed_at = Some(now);
                    confirmed += 1;
                }
            }
            Ok(confirmed)
        };
        self.0.call("confirm", confirm).await
    }

    async fn unconfirmed(&self, _backend: &str, limit: i64) -> Result<Vec<OpenExecution>, Error> {
        let find = |truth: &mut Truth, _: &World| {
            let rows = truth.executions.values();
            let running = rows.filter(|row| row.execution.status == Status::Running);
            let mut found: Vec<OpenExecution> =
                running.map(|row| OpenExecution::from(&row.execution)).collect();
            found.sort_by_key(|execution| execution.confirmed_at);
            found.truncate(most(limit));
            Ok(found)
        };
        self.0.call("unconfirmed", find).await
    }

    async fn open_among(&self, ids: &[String]) -> Result<Vec<OpenExecution>, Error> {
        let find = |truth: &mut Truth, _: &World| {
            let rows = ids.iter().filter_map(|id| truth.executions.get(id));
            let open = rows.filter(|row| !row.execution.status.is_terminal());
            Ok(open.map(|row| OpenExecution::from(&row.execution)).collect())
        };
        self.0.call("open_among", find).await
    }

    async fn remove_ended(&self, _older_than: Duration, _limit: i64) -> Result<usize, Error> {
        self.0.call("remove_ended", |_, _| Ok(0)).await
    }
}

#[async_trait]
impl ExecutionQueue for SimulatedDatabase {
    async fn claim_executions(
        &self,
        _backend: &str,
        _owner: &str,
        lease: Duration,
        limit: i64,
        _max_bytes: i64,
    ) -> Result<ClaimedExecutions, Error> {
        let claim = |truth: &mut Truth, _: &World| {
            let now = Instant::now();
            let mut claimed = ClaimedExecutions::default();
            let waits = |row: &&mut ExecutionRow| {
                row.execution.status == Status::Accepted && row.claimed_until <= now
            };
            let mut waiting: Vec<&mut ExecutionRow> =
                truth.executions.values_mut().filter(waits).collect();
            waiting.sort_by_key(|row| row.execution.created_at);
            for row in waiting.into_iter().take(most(limit)) {
                row.claimed_until = now + lease;
                row.fence += 1;
                let first_tried = row.tried_at.map(|at| now - at);
                row.tried_at.get_or_insert(now);
                if row.is_unreadable() {
                    claimed.unreadable.push(UnreadableExecution {
                        execution: OpenExecution::from(&row.execution),
                        fence: row.fence,
                        reason: "damaged".to_owned(),
                    });
                } else {
                    claimed.readable.push(ClaimedExecution {
                        execution: row.execution.clone(),
                        fence: row.fence,
                        first_tried,
                    });
                }
            }
            Ok(claimed)
        };
        self.0.call("claim_executions", claim).await
    }

    async fn release_executions(&self, claims: &[Release]) -> Result<(), Error> {
        let release = |truth: &mut Truth, _: &World| {
            for Release { id, fence, untried } in claims {
                if let Some(row) = truth.executions.get_mut(id)
                    && row.execution.status == Status::Accepted
                    && row.fence == *fence
                {
                    row.claimed_until = Instant::now();
                    if *untried {
                        row.tried_at = None;
                    }
                }
            }
            Ok(())
        };
        self.0.call("release_executions", release).await
    }

    async fn count_refusal(
        &self,
        id: &str,
        fence: i64,
        pause: Duration,
    ) -> Result<Option<i32>, Error> {
        let count = |truth: &mut Truth, _: &World| {
            let row = truth.executions.get_mut(id);
            let row =
                row.filter(|row| row.execution.status == Status::Accepted && row.fence == fence);
            Ok(row.map(|row| {
                row.refusals += 1;
                row.claimed_until = Instant::now() + pause;
                row.refusals
            }))
        };
        self.0.call("count_refusal", count).await
    }

    async fn reject_execution(
        &self,
        id: &str,
        fence: i64,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<bool, Error> {
        let reject = |truth: &mut Truth, _: &World| {
            let row = truth.executions.get_mut(id);
            let Some(row) =
                row.filter(|row| row.execution.status == Status::Accepted && row.fence == fence)
            else {
                return Ok(false);
            };
            row.is_rejected = true;
            row.execution = row.execution.after(outcome);
            truth.announce(announcement);
            Ok(true)
        };
        self.0.call("reject_execution", reject).await
    }

    async fn end_accepted(
        &self,
        id: &str,
        ending: &Ending,
        outcome: &Outcome,
        announcement: &NewEvent,
    ) -> Result<Ended, Error> {
        let end = |truth: &mut Truth, _: &World| {
            let row = truth.executions.get_mut(id);
            let Some(row) = row.filter(|row| row.execution.status == Status::Accepted) else {
                return Ok(Ended::NotAccepted);
            };
            if row.tried_at.is_some() {
                row.ending = Some(ending.clone());
                return Ok(Ended::Later);
            }
            row.execution = row.execution.after(outcome);
            truth.announce(announcement);
            Ok(Ended::Now)
        };
        self.0.call("end_accepted", end).await
    }

    async fn wished_endings(
        &self,
        _backend: &str,
        limit: i64,
    ) -> Result<Vec<(String, Result<Ending, Error>)>, Error> {
        let find = |truth: &mut Truth, _: &World| {
            let due = truth.executions.iter().filter_map(|(id, row)| {
                let ending = row.ending.clone()?;
                (row.execution.status == Status::Running).then(|| (id.clone(), Ok(ending)))
            });
            Ok(due.take(most(limit)).collect())
        };
        self.0.call("wished_endings", find).await
    }

    async fn forget_wish(&self, id: &str) -> Result<(), Error> {
        let forget = |truth: &mut Truth, _: &World| {
            if let Some(row) = truth.executions.get_mut(id) {
                row.ending = None;
            }
            Ok(())
        };
        self.0.call("forget_wish", forget).await
    }
}
