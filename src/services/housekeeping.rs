//! Removes expired data: every removal from the database because of age happens here.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    backends::database::{Database, Role},
    config::Config,
    connection::Client,
    error::Error,
};

/// The role of the process that does the housekeeping.
const HOUSEKEEPER: &str = "housekeeper";
/// The time after which a dead housekeeper is replaced.
const LEASE: Duration = Duration::from_secs(30);
/// The interval between removals of delivered events, which accumulate fastest.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Housekeeping may take a twentieth of the time.
const SHARE: u32 = 20;
/// The interval between removals of everything else.
const CLEAN_EVERY: Duration = Duration::from_mins(1);
/// A process that was not seen for this time is gone.
const GONE_AFTER: Duration = Duration::from_hours(1);
/// Rows that are removed at once: few, so that nobody waits long for the removal.
const BATCH: i64 = 500;

/// One process does the housekeeping for all that share the database.
#[derive(Debug)]
pub struct Housekeeping {
    owner: Arc<str>,
    database: Client<dyn Database>,
    /// The time for which delivered events are kept.
    replay_window: Duration,
    /// The time for which ended executions are kept.
    retention: Duration,
}

impl Housekeeping {
    /// The housekeeping of `database` in the name of `owner`.
    #[must_use]
    pub fn new(owner: Arc<str>, database: Client<dyn Database>, config: &Config) -> Self {
        Self {
            owner,
            database,
            replay_window: config.outbox.replay_window,
            retention: config.executions.retention,
        }
    }

    /// Removes expired data until `stop`. Outages are logged by the probes of the database.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut role =
            Role::new(self.database.clone(), HOUSEKEEPER, Arc::clone(&self.owner), LEASE);
        stop.run_until_cancelled(self.tidy(&mut role)).await;
        role.give_back().await;
    }

    async fn tidy(&self, role: &mut Role) {
        let mut cleaned: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            if role.hold().await.unwrap_or(false) {
                let due = cleaned.is_none_or(|at| at.elapsed() > CLEAN_EVERY);
                match self.remove(due).await {
                    Ok(()) if due => cleaned = Some(begun),
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "old rows cannot be removed"),
                }
            }
            sleep((begun.elapsed() * SHARE).max(SWEEP_EVERY)).await;
        }
    }

    async fn remove(&self, everything: bool) -> Result<(), Error> {
        let database = &self.database;
        while is_full(database.remove_delivered(self.replay_window, BATCH).await?) {}
        if everything {
            database.forget_processes(GONE_AFTER).await?;
            while is_full(database.forget_keys(BATCH).await?) {}
            while is_full(database.remove_ended(self.retention, BATCH).await?) {}
        }
        Ok(())
    }
}

/// True when there may be more to remove.
fn is_full(removed: usize) -> bool {
    i64::try_from(removed).is_ok_and(|removed| removed >= BATCH)
}
