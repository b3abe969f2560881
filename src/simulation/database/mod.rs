//! A database in memory, which all replicas share. Each call holds a pooled connection.

mod accept;
mod executions;
mod outbox;
mod unused;

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    link::Link,
    world::{Truth, World},
};
use crate::{
    backends::database::*,
    connection::Backend,
    error::Error,
    model::{
        backlog::{Backlog, Count},
        lanes::Slots,
    },
};

/// One replica's way to the database.
#[derive(Debug)]
pub(super) struct SimulatedDatabase(pub(super) Link);

fn most(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[async_trait]
impl Backend for SimulatedDatabase {
    async fn probe(&self) -> Result<(), Error> {
        self.0.probe().await
    }

    async fn close(&self) {}
}

impl Database for SimulatedDatabase {
    fn serves_one_process(&self) -> bool {
        false
    }
}

#[async_trait]
impl Counts for SimulatedDatabase {
    async fn count_waiting(&self, _most: i64) -> Result<Count, Error> {
        let count = |truth: &mut Truth, _: &World| {
            let rows = i64::try_from(truth.pending.len()).unwrap_or_default();
            Ok(Count { events: Backlog { rows, ..Backlog::default() }, ..Count::default() })
        };
        self.0.call("count_waiting", count).await
    }

    async fn counted(&self) -> Result<Option<Count>, Error> {
        self.0.call("counted", |_, _| Ok(None)).await
    }
}

#[async_trait]
impl Roles for SimulatedDatabase {
    async fn take_role(&self, role: &str, owner: &str, lease: Duration) -> Result<bool, Error> {
        let take = |truth: &mut Truth, _: &World| {
            let now = Instant::now();
            let held = truth.roles.get(role).is_some_and(|(by, until)| by != owner && *until > now);
            if !held {
                truth.roles.insert(role.to_owned(), (owner.to_owned(), now + lease));
            }
            Ok(!held)
        };
        self.0.call("take_role", take).await
    }

    async fn give_role_back(&self, role: &str, owner: &str) -> Result<(), Error> {
        let give_back = |truth: &mut Truth, _: &World| {
            if truth.roles.get(role).is_some_and(|(by, _)| by == owner) {
                truth.roles.remove(role);
            }
            Ok(())
        };
        self.0.call("give_role_back", give_back).await
    }

    async fn forget_processes(&self, _silent_for: Duration) -> Result<(), Error> {
        self.0.call("forget_processes", |_, _| Ok(())).await
    }
}

#[async_trait]
impl Wakeups for SimulatedDatabase {
    async fn wake_others(&self, _slots: &Slots) -> Result<(), Error> {
        self.0.call("wake_others", |_, _| Ok(())).await
    }

    /// Replicas find out by themselves, which is the slower way.
    async fn woken(&self) -> Result<Slots, Error> {
        std::future::pending().await
    }
}
