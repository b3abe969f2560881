//! Follows executions on their backend, and repeats hand-overs whose outcome is unknown.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{executions::Executions, records::Shared};
use crate::{
    backends::execution_service::Description,
    connection::Operation,
    error::{Error, ErrorKind},
    model::{
        events::Event,
        executions::{Execution, Outcome, Status},
        time::{self, Timestamp},
    },
};

const UNCONFIRMED: Operation = Operation::idempotent("unconfirmed");
const OPEN: Operation = Operation::idempotent("open_among");
const CONFIRM: Operation = Operation::idempotent("confirm");
const NOT_HANDED_OVER: Operation = Operation::idempotent("not_handed_over");
const FORGET_KEYS: Operation = Operation::idempotent("forget_keys");
const LIST: Operation = Operation::idempotent("list");
const DESCRIBE: Operation = Operation::idempotent("describe");
pub(super) const DATABASE_OPERATIONS: [Operation; 5] =
    [UNCONFIRMED, OPEN, CONFIRM, NOT_HANDED_OVER, FORGET_KEYS];
pub(super) const SERVICE_OPERATIONS: [Operation; 2] = [LIST, DESCRIBE];

/// Executions asked for in one round.
const BATCH: i64 = 200;
/// Ended executions in one answer of the backend.
const PAGE: usize = 500;
/// Changes of status that are published together.
const ANNOUNCED_AT_ONCE: usize = 100;
/// Executions asked for at once.
const PARALLEL: usize = 16;
/// The backend's list of ended executions may lag behind by as much.
const OVERLAP: Duration = Duration::from_secs(3);
/// A hand-over that is younger may still be under way.
const HAND_OVER_AGAIN_AFTER: Duration = Duration::from_secs(30);

impl Executions {
    /// Follows executions and repeats hand-overs until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let shared = &*self.0;
        let announced = shared.announced.lock().take();
        tokio::select! {
            () = stop.cancelled() => {}
            () = shared.follow_running() => {}
            () = shared.sweep_accepted() => {}
            () = shared.publish_announcements(announced) => {}
        }
    }
}

impl Shared {
    async fn follow_running(&self) {
        let mut followed_until = time::now();
        loop {
            let begun = time::now();
            // Outages are logged by the probes of the connection that is out. What ends during
            // one is looked up after it.
            match self.follow_once(followed_until - OVERLAP).await {
                Ok(()) => followed_until = begun,
                Err(error) => tracing::debug!(%error, "running executions cannot be followed"),
            }
            sleep(self.config.follow_interval).await;
        }
    }

    /// Accepts the events of changes of status in the order in which they were made. What the
    /// database cannot take now is not announced.
    async fn publish_announcements(&self, queue: Option<mpsc::Receiver<Event>>) {
        let Some(mut queue) = queue else { return std::future::pending().await };
        let mut batch = Vec::new();
        let mut failing = false;
        while queue.recv_many(&mut batch, ANNOUNCED_AT_ONCE).await > 0 {
            let published = self.accept_announcements(&batch).await;
            if let (false, Err(error)) = (failing, &published) {
                tracing::warn!(%error, "changes of status cannot be announced");
            }
            failing = published.is_err();
            batch.clear();
        }
    }

    async fn accept_announcements(&self, batch: &[Event]) -> Result<(), Error> {
        let announced_before = |error: &Error| error.kind() == ErrorKind::AlreadyExists;
        match self.events.accept(batch).await {
            // Another replica announced one of the changes, at another time by its clock.
            Err(error) if announced_before(&error) => {}
            accepted => return accepted,
        }
        for event in batch {
            match self.events.accept(std::slice::from_ref(event)).await {
                Err(error) if announced_before(&error) => {}
                accepted => accepted?,
            }
        }
        Ok(())
    }

    /// Takes over what ended lately, then asks for those that were not confirmed for long.
    async fn follow_once(&self, mut since: Timestamp) -> Result<(), Error> {
        let backend = &self.backend;
        let running = self
            .database
            .call(UNCONFIRMED, |database| async move { database.unconfirmed(backend, BATCH).await })
            .await?;
        if running.is_empty() {
            return Ok(());
        }
        loop {
            let ended = self
                .service
                .call(LIST, |service| async move { service.list(since, PAGE).await })
                .await?;
            let last = ended.last().and_then(|description| description.outcome.finished_at);
            let full = ended.len() == PAGE;
            self.take_over(ended).await?;
            match last {
                Some(last) if full && last > since => since = last,
                _ => break,
            }
        }
        self.confirm_old(running).await
    }

    /// Stores what the backend says of executions that are still open here.
    async fn take_over(&self, ended: Vec<Description>) -> Result<(), Error> {
        let mut outcomes: HashMap<String, Outcome> =
            ended.into_iter().map(|description| (description.id, description.outcome)).collect();
        let ids: Vec<String> = outcomes.keys().cloned().collect();
        let ids = &ids;
        let open = self
            .database
            .call(OPEN, |database| async move { database.open_among(ids).await })
            .await?;
        for mut execution in open {
            if let Some(outcome) = outcomes.remove(&execution.id) {
                self.apply(&mut execution, &outcome).await?;
            }
        }
        Ok(())
    }

    async fn confirm_old(&self, open: Vec<Execution>) -> Result<(), Error> {
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
        self.database
            .call(CONFIRM, |database| async move { database.confirm(confirmed).await })
            .await
    }

    /// The id of an execution that is still running.
    async fn confirm_one(&self, mut execution: Execution) -> Result<Option<String>, Error> {
        let id = execution.id.clone();
        let id = &id;
        let described =
            self.service.call(DESCRIBE, |service| async move { service.describe(id).await }).await;
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
        self.apply(&mut execution, &outcome).await?;
        Ok(None)
    }

    /// At start and from time to time: what was accepted and not acknowledged is handed over again,
    /// with the same request id.
    async fn sweep_accepted(&self) {
        let mut older_than = None;
        let mut last_cleaned: Option<Instant> = None;
        loop {
            let swept = match older_than {
                Some(older_than) => self.sweep_once(older_than).await,
                None => self.sweep_first().await,
            };
            if swept.is_ok() {
                older_than = Some(HAND_OVER_AGAIN_AFTER);
            }
            if last_cleaned.is_none_or(|at| at.elapsed() > Duration::from_mins(10)) {
                let cleaned = self
                    .database
                    .call(FORGET_KEYS, |database| async move { database.forget_keys().await })
                    .await;
                last_cleaned = cleaned.is_ok().then(Instant::now);
            }
            let pause = if swept.is_ok() {
                self.config.sweep_interval
            } else {
                self.config.follow_interval
            };
            sleep(pause).await;
        }
    }

    /// In a database of our own, whatever is not handed over was left by a process that died; in a
    /// shared one, it may be under way in another replica.
    async fn sweep_first(&self) -> Result<(), Error> {
        let alone = self
            .database
            .call(NOT_HANDED_OVER, |database| async move { Ok(database.serves_one_process()) })
            .await?;
        self.sweep_once(if alone { Duration::ZERO } else { HAND_OVER_AGAIN_AFTER }).await
    }

    async fn sweep_once(&self, older_than: Duration) -> Result<(), Error> {
        let backend = &self.backend;
        let accepted = self
            .database
            .call(NOT_HANDED_OVER, |database| async move {
                database.not_handed_over(backend, older_than, BATCH).await
            })
            .await?;
        for mut execution in accepted {
            if let Err(error) = self.hand_over(&mut execution).await
                && !error.kind().is_outage()
            {
                let refused = Outcome::ended(Status::Failed, error.message(), time::now());
                self.apply(&mut execution, &refused).await?;
            }
        }
        Ok(())
    }
}
