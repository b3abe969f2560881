//! Confirms that executions are still running.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use super::{Follower, Progress, age, missing::Missing};
use crate::{
    backends::execution_service::{Description, PageToken},
    error::{Error, ErrorKind},
    model::{
        executions::{OpenExecution, Outcome, Status},
        time,
    },
};

/// Executions that are asked about side by side.
const ASKED_AT_ONCE: usize = 16;
/// Of the executions that a list shows, one in so many must be ours, or it is cheaper to ask about
/// each of ours.
const WORTH: usize = 20;

/// The progress of confirming.
#[derive(Debug)]
pub(super) struct Confirming {
    /// A list of running executions that is being read.
    next: Option<PageToken>,
    /// When the last list ended, after which executions that it did not show are asked about.
    listed: Option<Instant>,
    /// The time until which the list is not worth reading.
    not_before: Option<Instant>,
    missing: Missing,
}

impl Confirming {
    pub(super) fn new(patience: Duration) -> Self {
        Self { next: None, listed: None, not_before: None, missing: Missing::new(patience) }
    }

    /// True when old executions are to be confirmed by the next page of the list.
    fn reads_list(&self, half: Duration) -> bool {
        let lately = self.listed.is_some_and(|at| at.elapsed() < half);
        let worthless = self.not_before.is_some_and(|at| Instant::now() < at);
        self.next.is_some() || !(lately || worthless)
    }
}

impl Follower {
    /// Confirms executions that were not confirmed for half of the allowed time: by a page of the
    /// backend's list of running ones, then one by one those that it has not shown. Returns true if
    /// the list has a further page.
    pub(super) async fn confirm(
        &self,
        progress: &mut Progress,
        running: Vec<OpenExecution>,
    ) -> Result<bool, Error> {
        let half = self.confirm_within / 2;
        let is_old = |execution: &OpenExecution| age(execution) > half;
        if progress.confirming.next.is_none() && !running.iter().any(is_old) {
            return Ok(false);
        }
        if progress.confirming.reads_list(half) {
            return self.confirm_page(progress, half).await;
        }
        let old = running.into_iter().filter(is_old).collect();
        self.confirm_each(&mut progress.confirming.missing, old).await?;
        Ok(false)
    }

    async fn confirm_page(&self, progress: &mut Progress, half: Duration) -> Result<bool, Error> {
        let Progress { pace, confirming, .. } = progress;
        let next = confirming.next.take();
        let page = pace.request(self.service.running(next.as_ref())).await?;
        let shown = page.items.len();
        let ids = &page.items;
        let ours = self.records.database.confirm(ids).await?;
        confirming.next = page.next.filter(|_| ours * WORTH >= shown);
        if confirming.next.is_some() {
            return Ok(true);
        }
        confirming.listed = Some(Instant::now());
        if ours * WORTH < shown {
            confirming.not_before = Some(Instant::now() + half * 20);
        }
        Ok(false)
    }

    /// Asks about each execution.
    async fn confirm_each(
        &self,
        missing: &mut Missing,
        old: Vec<OpenExecution>,
    ) -> Result<(), Error> {
        let asked: Vec<(OpenExecution, Result<Description, Error>)> = stream::iter(old)
            .map(|execution| async move {
                let id = execution.id.as_str();
                let described = self.service.describe(id).await;
                (execution, described)
            })
            .buffer_unordered(ASKED_AT_ONCE)
            .collect()
            .await;
        let (mut known, mut unknown, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let mut executions = HashMap::new();
        for (execution, described) in &asked {
            executions.insert(execution.id.as_str(), execution);
            match described {
                Ok(described) if described.outcome.status == Status::Running => {
                    known.push(execution.id.clone());
                }
                Ok(described) => ended.push(described.clone()),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    tracing::debug!(execution.id, "the backend does not know an execution");
                    unknown.push(execution.id.clone());
                }
                Err(_) => {}
            }
        }
        let heard = known.iter().cloned().chain(ended.iter().map(|ended| ended.id.clone()));
        let heard: Vec<String> = heard.collect();
        let lost = missing.note(&heard, unknown).into_iter().map(|id| {
            let outcome = Outcome::ended(Status::Failed, "lost_by_backend", time::now());
            Description { id, outcome, ran_for: None }
        });
        ended.extend(lost);
        self.store(ended, &executions).await?;
        if known.is_empty() {
            return Ok(());
        }
        let known = &known;
        self.records.database.confirm(known).await.map(drop)
    }
}
