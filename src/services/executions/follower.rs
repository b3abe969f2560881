//! Follows executions on their backend.
//!
//! One process follows for all that share the database. In each round it stores the ends that the
//! backend lists, confirms what the backend lists as running, and asks for each execution that no
//! list shows. It has no callers: it is a task.

mod confirm;
mod missing;
mod pace;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::{confirm::Confirming, pace::ListPace};
use super::{Parts, endings::Endings, records::Records};
use crate::{
    backends::{
        database::Role,
        execution_service::{Description, ExecutionService, PageToken},
    },
    config,
    connection::Client,
    error::Error,
    model::{
        executions::{ListedEnd, OpenExecution},
        time::{self, Timestamp},
    },
};

/// The role of the process that follows.
const FOLLOWER: &str = "follower";
/// Unconfirmed executions that are looked at in one round.
const BATCH: i64 = 200;
/// Ended executions whose outcomes are read in one call.
const OUTCOMES: usize = 100;
/// Calls for outcomes that are made side by side.
const CALLS: usize = 4;
/// The time by which the backend's list of ended executions may lag behind.
const OVERLAP: Duration = Duration::from_secs(3);
/// How far the clocks of the database and of the backend may differ.
const CLOCK_SKEW: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Follower {
    owner: Arc<str>,
    records: Arc<Records>,
    endings: Arc<Endings>,
    /// The rounds repeat what fails.
    service: Client<dyn ExecutionService>,
    follow_interval: Duration,
    confirm_within: Duration,
    lease: Duration,
    lists_per_second: u32,
}

/// The progress of the process that follows.
#[derive(Debug)]
struct Progress {
    pace: ListPace,
    /// The newest end that a complete list has shown, by the backend's clock.
    followed_until: Option<Timestamp>,
    list: Option<EndList>,
    confirming: Confirming,
}

/// A list of ended executions that is being read.
#[derive(Debug)]
struct EndList {
    since: Timestamp,
    next: Option<PageToken>,
    newest: Option<Timestamp>,
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
            service: parts.service.unretried(),
            follow_interval: config.follow_interval,
            confirm_within: config.confirm_within,
            // It must outlast the pause between two rounds.
            lease: config.lease.max(config.follow_interval * 3),
            lists_per_second: config.lists_per_second,
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
                        progress.get_or_insert_with(|| self.begin());
                    }
                    Ok(false) => progress = None,
                    Err(error) => tracing::debug!(%error, "the follower's place is not known"),
                }
            }
            let more = match &mut progress {
                Some(progress) => self.follow(progress).await,
                None => false,
            };
            if !more {
                sleep(self.follow_interval).await;
            }
        }
    }

    fn begin(&self) -> Progress {
        Progress {
            pace: ListPace::new(self.lists_per_second),
            followed_until: None,
            list: None,
            confirming: Confirming::new(self.confirm_within),
        }
    }

    /// Follows for one round: at most one page of each list, so that the role is renewed in time.
    /// Returns true when there is more to read at once. Outages are logged by the probes of the
    /// connection that is down.
    async fn follow(&self, progress: &mut Progress) -> bool {
        let followed = self.follow_once(progress).await;
        if let Err(error) = self.endings.send_wished().await {
            tracing::debug!(%error, "executions cannot be ended yet");
        }
        followed.unwrap_or_else(|error| {
            tracing::debug!(%error, "running executions cannot be followed");
            // Executions that end meanwhile are listed from where the last complete list ended.
            progress.list = None;
            false
        })
    }

    async fn follow_once(&self, progress: &mut Progress) -> Result<bool, Error> {
        let backend = &self.records.backend;
        let running = self.records.database.unconfirmed(backend, BATCH).await?;
        let Some(oldest) = running.first() else {
            // What starts from now on cannot have ended before.
            *progress = self.begin();
            return Ok(false);
        };
        let more = self.take_over_page(progress, oldest).await?;
        Ok(self.confirm(progress, running).await? || more)
    }

    /// Stores the outcomes that a page of the backend's list shows. Returns true if there is a
    /// further page.
    async fn take_over_page(
        &self,
        progress: &mut Progress,
        oldest: &OpenExecution,
    ) -> Result<bool, Error> {
        let since = match progress.followed_until {
            Some(until) => until - OVERLAP,
            None => confirmed_at(oldest) - CLOCK_SKEW,
        };
        let mut list = progress.list.take().unwrap_or(EndList { since, next: None, newest: None });
        let (since, next) = (list.since, list.next.as_ref());
        let page = progress.pace.request(self.service.ended_since(since, next)).await?;
        list.newest = list.newest.max(page.items.iter().map(|end| end.ended_at).max());
        self.take_over(page.items).await?;
        list.next = page.next;
        let more = list.next.is_some();
        if more {
            progress.list = Some(list);
        } else {
            progress.followed_until = list.newest.max(progress.followed_until);
        }
        Ok(more)
    }

    /// Stores the backend's outcomes of executions that are still open here.
    async fn take_over(&self, ended: Vec<ListedEnd>) -> Result<(), Error> {
        let ids: Vec<String> = ended.iter().map(|end| end.id.clone()).collect();
        let ids = &ids;
        let open = self.records.database.open_among(ids).await?;
        let open: HashMap<&str, &OpenExecution> =
            open.iter().map(|execution| (execution.id.as_str(), execution)).collect();
        let ended: Vec<ListedEnd> =
            ended.into_iter().filter(|end| open.contains_key(end.id.as_str())).collect();
        for calls in ended.chunks(OUTCOMES * CALLS) {
            let calls = calls.chunks(OUTCOMES).map(|ended| self.service.outcomes(ended));
            for described in join_all(calls).await {
                self.store(described?, &open).await?;
            }
        }
        Ok(())
    }

    /// Stores outcomes in shared commits.
    async fn store(
        &self,
        described: Vec<Description>,
        open: &HashMap<&str, &OpenExecution>,
    ) -> Result<(), Error> {
        let changes = described.into_iter().filter_map(|description| {
            let execution = *open.get(description.id.as_str())?;
            let outcome = description.on_our_clock(execution.started_at);
            Some(async move { self.records.apply(execution, &outcome).await })
        });
        for changed in join_all(changes).await {
            changed?;
        }
        Ok(())
    }
}

/// The time until which an execution is known to have run, by the database's clock.
fn confirmed_at(execution: &OpenExecution) -> Timestamp {
    execution.confirmed_at.unwrap_or(execution.created_at)
}

fn age(execution: &OpenExecution) -> Duration {
    let age = time::now().duration_since(confirmed_at(execution));
    // The database's clock may be ahead of ours.
    age.try_into().unwrap_or_default()
}
