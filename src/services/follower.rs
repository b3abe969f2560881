//! Follows executions on their backend, and removes those that ended long ago.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{executions::Executions, records::Shared};
use crate::{
    backends::{database::Role, execution_service::Description},
    error::{Error, ErrorKind},
    model::{
        executions::{OpenExecution, Outcome, Status},
        time::{self, Timestamp},
    },
};

/// The role of the process that follows.
const FOLLOWER: &str = "follower";
/// Executions asked for in one round.
const BATCH: i64 = 200;
/// Ended executions in one answer of the backend, at most and at least: each may cost it a look.
const PAGE: usize = 100;
const SHORTEST_PAGE: usize = 10;
/// Executions asked for at once.
const PARALLEL: usize = 16;
/// The backend's list of ended executions may lag behind by as much.
const OVERLAP: Duration = Duration::from_secs(3);
/// Time until a backend that does not know an execution is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How often what is kept no longer is removed.
const CLEAN_EVERY: Duration = Duration::from_mins(1);
/// A process that was not seen for so long is gone.
const GONE_AFTER: Duration = Duration::from_hours(1);
/// Executions that are removed at once.
const REMOVED_AT_ONCE: i64 = 500;

/// What the process that follows remembers.
struct Follower {
    /// When it took its place, or took it again.
    since: Instant,
    followed_until: Timestamp,
    /// How many of those that ended are asked for at once.
    page: usize,
    cleaned: Option<Instant>,
}

impl Default for Follower {
    fn default() -> Self {
        Self { since: Instant::now(), followed_until: time::now(), page: PAGE, cleaned: None }
    }
}

impl Executions {
    /// Hands accepted executions over and follows them until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let shared = &self.0;
        let config = &shared.config;
        let role = Role {
            database: shared.database.clone(),
            name: FOLLOWER,
            owner: Arc::clone(&shared.owner),
            // It must outlast the pause between two rounds.
            lease: config.lease.max(config.follow_interval * 3),
        };
        let beside = async {
            tokio::join!(shared.follow_in_turn(&role), shared.keep_count());
        };
        tokio::select! {
            () = shared.hand_over_accepted(&stop) => {}
            () = beside => {}
        }
        role.give_back().await;
    }
}

impl Shared {
    /// One process follows for all that share the database.
    async fn follow_in_turn(&self, role: &Role) {
        let mut follower: Option<Follower> = None;
        loop {
            let due =
                follower.as_ref().is_none_or(|follower| follower.since.elapsed() > role.lease / 3);
            // Others may reach the execution service when this process does not.
            if due && !self.service.is_out() {
                // The time begins before the database counts it from.
                let since = Instant::now();
                match role.take().await {
                    Ok(true) => follower.get_or_insert_default().since = since,
                    Ok(false) => follower = None,
                    Err(error) => tracing::debug!(%error, "the follower's place is not known"),
                }
            }
            if let Some(follower) = &mut follower {
                self.follow(follower).await;
            }
            sleep(self.config.follow_interval).await;
        }
    }

    /// One round. Outages are logged by the probes of the connection that is out.
    async fn follow(&self, follower: &mut Follower) {
        // What ends during an outage is looked up after it.
        if let Err(error) = self.follow_once(follower).await {
            tracing::debug!(%error, "running executions cannot be followed");
        }
        if let Err(error) = self.send_wished_endings().await {
            tracing::debug!(%error, "executions cannot be ended yet");
        }
        if follower.cleaned.is_none_or(|at| at.elapsed() > CLEAN_EVERY) {
            match self.clean().await {
                Ok(()) => follower.cleaned = Some(Instant::now()),
                Err(error) => tracing::debug!(%error, "old executions cannot be removed"),
            }
        }
    }

    /// Removes what is kept no longer, in small batches.
    async fn clean(&self) -> Result<(), Error> {
        self.database.forget_processes(GONE_AFTER).await?;
        let are_all = |removed| i64::try_from(removed).is_ok_and(|count| count < REMOVED_AT_ONCE);
        loop {
            let forgotten = self.database.forget_keys(REMOVED_AT_ONCE).await?;
            if are_all(forgotten) {
                break;
            }
        }
        let retention = self.config.retention;
        loop {
            let removed = self.database.remove_ended(retention, REMOVED_AT_ONCE).await?;
            if are_all(removed) {
                return Ok(());
            }
        }
    }

    /// Takes over what ended lately, then asks for those that were not confirmed for long.
    async fn follow_once(&self, follower: &mut Follower) -> Result<(), Error> {
        let backend = &self.backend;
        let running = self.database.unconfirmed(backend, BATCH).await?;
        let begun = time::now();
        if running.is_empty() {
            follower.followed_until = begun;
            return Ok(());
        }
        let taken_over = self.take_over_ended(follower).await;
        // Those that the list does not show in time are asked for one by one.
        self.confirm_old(running).await?;
        taken_over?;
        follower.followed_until = begun;
        Ok(())
    }

    /// A page that takes longer than an attempt may would take as long the next time: shorter ones
    /// go on from where the last was good.
    async fn take_over_ended(&self, follower: &mut Follower) -> Result<(), Error> {
        let mut since = follower.followed_until - OVERLAP;
        loop {
            let page = follower.page;
            let listed = self.service.list(since, page).await;
            let grown = if listed.is_ok() { page * 2 } else { page / 4 };
            follower.page = grown.clamp(SHORTEST_PAGE, PAGE);
            let ended = listed?;
            let last = ended.last().and_then(|description| description.outcome.finished_at);
            let full = ended.len() == page;
            self.take_over(ended).await?;
            match last {
                Some(last) if full && last > since => since = last,
                _ => return Ok(()),
            }
            follower.followed_until = since + OVERLAP;
        }
    }

    /// Stores what the backend says of executions that are still open here.
    async fn take_over(&self, ended: Vec<Description>) -> Result<(), Error> {
        let mut outcomes: HashMap<String, Outcome> =
            ended.into_iter().map(|description| (description.id, description.outcome)).collect();
        let ids: Vec<String> = outcomes.keys().cloned().collect();
        let ids = &ids;
        let open = self.database.open_among(ids).await?;
        for execution in open {
            if let Some(outcome) = outcomes.remove(&execution.id) {
                self.apply(&execution, &outcome).await?;
            }
        }
        Ok(())
    }

    async fn confirm_old(&self, open: Vec<OpenExecution>) -> Result<(), Error> {
        let half = self.config.confirm_within / 2;
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
        self.database.confirm(confirmed).await
    }

    /// The id of an execution that is still running.
    async fn confirm_one(&self, execution: OpenExecution) -> Result<Option<String>, Error> {
        let id = execution.id.clone();
        let id = &id;
        let describe = async || self.service.describe(id).await;
        let mut described = describe().await;
        if described.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            tracing::debug!(execution.id = id, "the backend does not know an execution");
            // What is lost is lost for good, so a server that is just taking over is asked again.
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
        self.apply(&execution, &outcome).await?;
        Ok(None)
    }
}
