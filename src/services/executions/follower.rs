//! Follows executions on their backend.
//!
//! Owns the state between rounds: how far the backend's list of ended executions was read. One
//! process follows for all that share the database. It has no callers: it is a task.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Parts, endings::Endings, records::Records};
use crate::{
    backends::{
        database::Role,
        execution_service::{Description, ExecutionService},
    },
    config,
    connection::Client,
    error::{Error, ErrorKind},
    model::{
        executions::{OpenExecution, Outcome, Status},
        time::{self, Timestamp},
    },
};

/// The role of the process that follows.
const FOLLOWER: &str = "follower";
/// Executions that are looked up in one round.
const BATCH: i64 = 200;
/// Ended executions in one answer of the backend, at most and at least: each may cost it a lookup.
const PAGE: usize = 100;
const SHORTEST_PAGE: usize = 10;
/// Executions that are looked up in parallel.
const PARALLEL: usize = 16;
/// The time by which the backend's list of ended executions may lag behind.
const OVERLAP: Duration = Duration::from_secs(3);
/// The time until a backend that does not know an execution is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Follower {
    owner: Arc<str>,
    records: Arc<Records>,
    endings: Arc<Endings>,
    service: Client<dyn ExecutionService>,
    follow_interval: Duration,
    confirm_within: Duration,
    lease: Duration,
}

/// The progress of the follower.
struct Progress {
    followed_until: Timestamp,
    /// The number of ended executions that are requested at once.
    page: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { followed_until: time::now(), page: PAGE }
    }
}

impl Follower {
    pub(super) fn new(
        records: &Arc<Records>,
        endings: &Arc<Endings>,
        parts: &Parts,
        config: &config::Executions,
    ) -> Self {
        Self {
            owner: Arc::clone(&parts.owner),
            records: Arc::clone(records),
            endings: Arc::clone(endings),
            service: parts.service.clone(),
            follow_interval: config.follow_interval,
            confirm_within: config.confirm_within,
            // It must outlast the pause between two rounds.
            lease: config.lease.max(config.follow_interval * 3),
        }
    }

    /// Follows until `stop`, then releases the role to another process.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (database, owner) = (self.records.database.clone(), Arc::clone(&self.owner));
        let mut role = Role::new(database, FOLLOWER, owner, self.lease);
        stop.run_until_cancelled(self.follow_in_turn(&mut role)).await;
        role.give_back().await;
    }

    /// One process follows for all that share the database.
    async fn follow_in_turn(&self, role: &mut Role) {
        let mut progress: Option<Progress> = None;
        loop {
            // Other processes may reach the execution service when this one does not.
            if !self.service.is_out() {
                match role.hold().await {
                    Ok(true) => {
                        progress.get_or_insert_default();
                    }
                    Ok(false) => progress = None,
                    Err(error) => tracing::debug!(%error, "the follower's place is not known"),
                }
            }
            if let Some(progress) = &mut progress {
                self.follow(progress).await;
            }
            sleep(self.follow_interval).await;
        }
    }

    /// Follows for one round. Outages are logged by the probes of the connection that is down.
    async fn follow(&self, progress: &mut Progress) {
        // Executions that end during an outage are looked up after it.
        if let Err(error) = self.follow_once(progress).await {
            tracing::debug!(%error, "running executions cannot be followed");
        }
        if let Err(error) = self.endings.send_wished().await {
            tracing::debug!(%error, "executions cannot be ended yet");
        }
    }

    /// Stores recent endings, then looks up executions that have not been confirmed for long.
    async fn follow_once(&self, progress: &mut Progress) -> Result<(), Error> {
        let backend = &self.records.backend;
        let running = self.records.database.unconfirmed(backend, BATCH).await?;
        let begun = time::now();
        if running.is_empty() {
            progress.followed_until = begun;
            return Ok(());
        }
        let taken_over = self.take_over_ended(progress).await;
        // Executions that the list does not show in time are looked up one by one.
        self.confirm_old(running).await?;
        taken_over?;
        progress.followed_until = begun;
        Ok(())
    }

    /// A page that exceeds the time of an attempt would do so again: shorter ones continue after
    /// the last good one.
    async fn take_over_ended(&self, progress: &mut Progress) -> Result<(), Error> {
        let mut since = progress.followed_until - OVERLAP;
        loop {
            let page = progress.page;
            let listed = self.service.list(since, page).await;
            let grown = if listed.is_ok() { page * 2 } else { page / 4 };
            progress.page = grown.clamp(SHORTEST_PAGE, PAGE);
            let ended = listed?;
            let last = ended.last().and_then(|description| description.outcome.finished_at);
            let full = ended.len() == page;
            self.take_over(ended).await?;
            match last {
                Some(last) if full && last > since => since = last,
                _ => return Ok(()),
            }
            progress.followed_until = since + OVERLAP;
        }
    }

    /// Stores the backend's outcomes of executions that are still open here.
    async fn take_over(&self, ended: Vec<Description>) -> Result<(), Error> {
        let mut outcomes: HashMap<String, Outcome> =
            ended.into_iter().map(|description| (description.id, description.outcome)).collect();
        let ids: Vec<String> = outcomes.keys().cloned().collect();
        let ids = &ids;
        let open = self.records.database.open_among(ids).await?;
        for execution in open {
            if let Some(outcome) = outcomes.remove(&execution.id) {
                self.records.apply(&execution, &outcome).await?;
            }
        }
        Ok(())
    }

    async fn confirm_old(&self, open: Vec<OpenExecution>) -> Result<(), Error> {
        let half = self.confirm_within / 2;
        let old = open.into_iter().filter(|execution| {
            let confirmed = execution.confirmed_at.unwrap_or(execution.created_at);
            time::now().duration_since(confirmed).unsigned_abs() > half
        });
        let confirmed: Vec<String> = stream::iter(old)
            .map(|execution| self.confirm_one(execution))
            .buffer_unordered(PARALLEL)
            .filter_map(|confirmed| async move { confirmed.ok().flatten() })
            .collect()
            .await;
        if confirmed.is_empty() {
            return Ok(());
        }
        let confirmed = &confirmed;
        self.records.database.confirm(confirmed).await
    }

    /// Looks up an execution. Returns its id if it is still running.
    async fn confirm_one(&self, execution: OpenExecution) -> Result<Option<String>, Error> {
        let id = execution.id.clone();
        let id = &id;
        let describe = async || self.service.describe(id).await;
        let mut described = describe().await;
        if described.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            tracing::debug!(execution.id = id, "the backend does not know an execution");
            // A loss is final, so a server that may just be taking over is asked again.
            sleep(ASK_AGAIN).await;
            described = describe().await;
        }
        let outcome = match described {
            Ok(description) => description.outcome,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Outcome::ended(Status::Failed, "lost_by_backend", time::now())
            }
            Err(error) => return Err(error),
        };
        if outcome.status == Status::Running {
            return Ok(Some(execution.id));
        }
        self.records.apply(&execution, &outcome).await?;
        Ok(None)
    }
}
