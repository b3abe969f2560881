//! The embedded executor: claims runs and executes them.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::step::{StepError, Steps},
    ActiveRun, Board, Config,
};
use crate::{
    backends::database::{ClaimedRun, Database},
    connection::Client,
    error::Error,
    model::{
        executions::{Outcome, Status, StepRetry, Workflow},
        json::Json,
        time,
    },
};

/// The pause before a failed update is retried.
const MARK_AGAIN: Duration = Duration::from_secs(1);
/// How long running steps may take once the program stops; then their claims are released.
const FINISH_STEPS: Duration = Duration::from_secs(5);

/// Claims runs and executes them until `closing`.
pub(super) struct Runner {
    pub(super) database: Client<dyn Database>,
    pub(super) config: Config,
    pub(super) steps: Steps,
    pub(super) board: Arc<Board>,
    pub(super) instance: Arc<str>,
    pub(super) owner: String,
    pub(super) closing: CancellationToken,
    /// The runs it executes.
    pub(super) runs: TaskTracker,
}

impl Runner {
    /// Looks for runs when notified, and periodically, until `closing`. Then the runs end or are
    /// released.
    pub(super) async fn claim_runs(self: Arc<Self>, closing: CancellationToken) {
        closing.run_until_cancelled(self.claim_again_and_again()).await;
        if closing.is_cancelled() {
            self.stop().await;
        }
    }

    async fn claim_again_and_again(self: &Arc<Self>) {
        let mut adopted = false;
        loop {
            *self.board.heartbeat.lock() = Instant::now();
            let found = match self.adopt_once(&mut adopted).await {
                Ok(()) => self.claim_free().await,
                Err(error) => Err(error),
            };
            // The database's own probes log its outage.
            let claimed = found.unwrap_or_else(|error| {
                tracing::debug!(%error, "runs cannot be claimed");
                0
            });
            if claimed == 0 {
                let _told = timeout(self.config.poll_interval, self.board.work.notified()).await;
            }
        }
    }

    /// In a single-process database, claims of another owner were left by a process that died.
    async fn adopt_once(&self, adopted: &mut bool) -> Result<(), Error> {
        if *adopted {
            return Ok(());
        }
        self.database.release_runs_of_others(&self.instance).await?;
        *adopted = true;
        Ok(())
    }

    async fn claim_free(self: &Arc<Self>) -> Result<usize, Error> {
        let free = self.config.max_concurrent.saturating_sub(self.runs.len());
        if free == 0 {
            return Ok(0);
        }
        let limit = i64::try_from(free).unwrap_or(i64::MAX);
        let claimed = self.database.claim_runs(&self.owner, self.config.lease, limit).await?;
        let count = claimed.len();
        self.board.claimed.fetch_or(count > 0, Ordering::Relaxed);
        for run in claimed {
            let active = ActiveRun { fence: run.fence, ..ActiveRun::default() };
            self.board.active.lock().insert(run.id.clone(), active.clone());
            if run.cancel_requested {
                active.cancel.cancel();
            }
            let runner = Arc::clone(self);
            self.runs.spawn(async move {
                let id = run.id.clone();
                runner.work(run, &active).await;
                // The same run may have been claimed again meanwhile.
                let fence = active.fence;
                runner.board.active.lock().retain(|key, run| *key != id || run.fence != fence);
                runner.board.run_ended();
                runner.board.work.notify_one();
            });
        }
        Ok(count)
    }

    /// Renews our claims, and learns of requested cancellations.
    pub(super) async fn renew_claims(self: Arc<Self>) {
        let mut renewed_at = Instant::now();
        loop {
            sleep(self.config.lease / 3).await;
            let begun = Instant::now();
            // Taken before the call, because a run claimed meanwhile is not in the answer.
            let known: Vec<String> = self.board.active.lock().keys().cloned().collect();
            if known.is_empty() {
                renewed_at = begun;
                continue;
            }
            let renewed = timeout_at(renewed_at + self.config.lease, self.renew(&known)).await;
            if let Ok(held) = renewed {
                renewed_at = begun;
                self.apply(&known, &held);
            } else {
                // After the lease another process may hold the runs, and continuing would repeat
                // steps.
                for run in self.board.active.lock().values() {
                    run.lost.cancel();
                }
                renewed_at = Instant::now();
            }
        }
    }

    /// Retries until the database answers.
    async fn renew(&self, known: &[String]) -> Vec<(String, bool)> {
        loop {
            let renewed = self.database.renew_runs(&self.owner, known, self.config.lease).await;
            match renewed {
                Ok(held) => return held,
                Err(error) => tracing::debug!(%error, "claims cannot be renewed"),
            }
            sleep(MARK_AGAIN).await;
        }
    }

    fn apply(&self, known: &[String], held: &[(String, bool)]) {
        let ids: HashSet<&str> = held.iter().map(|(id, _)| id.as_str()).collect();
        let active = self.board.active.lock();
        for run in known.iter().filter(|id| !ids.contains(id.as_str())) {
            if let Some(run) = active.get(run) {
                run.lost.cancel();
            }
        }
        for (id, cancel_requested) in held {
            if let (true, Some(run)) = (*cancel_requested, active.get(id)) {
                run.cancel.cancel();
            }
        }
    }

    /// Executes one run until it ends or its claim is lost.
    async fn work(&self, run: ClaimedRun, active: &ActiveRun) {
        let deadline = run.time_left.map(|left| Instant::now() + left);
        let time_up = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let outcome = tokio::select! {
            biased;
            () = active.lost.cancelled() => None,
            () = active.cancel.cancelled() => Some(ended(Status::Cancelled, "cancelled on request")),
            () = time_up => Some(ended(Status::TimedOut, "the timeout elapsed")),
            outcome = self.try_steps(&run) => outcome,
        };
        if let Some(outcome) = outcome {
            self.finish(&run, &outcome, &active.lost).await;
        }
    }

    /// Tries the step as often as its retry policy allows. `None` when the claim was lost.
    async fn try_steps(&self, run: &ClaimedRun) -> Option<Outcome> {
        let retry = retry_of(&run.definition);
        let mut tries = run.tries;
        let mut pause = run.pause;
        loop {
            sleep(pause).await;
            tries += 1;
            pause = retry.pause_after(tries);
            if !self.note(run, tries, pause).await {
                return None;
            }
            let trace = run.traceparent.as_deref();
            match self.steps.run(&run.id, trace, &run.definition, &run.input).await {
                Ok(result) => return Some(completed(result)),
                Err(StepError { message, retryable }) => {
                    if !retryable || tries >= retry.max_attempts {
                        return Some(ended(Status::Failed, &message));
                    }
                }
            }
        }
    }

    /// Records that an attempt begins. An attempt that cannot be counted does not begin.
    async fn note(&self, run: &ClaimedRun, tries: u32, pause: Duration) -> bool {
        loop {
            let noted = self.database.note_try(&run.id, run.fence, tries, pause).await;
            match noted {
                Ok(ours) => return ours,
                Err(_) => sleep(MARK_AGAIN).await,
            }
        }
    }

    /// Stores the outcome of a run, retrying while the claim is ours.
    async fn finish(&self, run: &ClaimedRun, outcome: &Outcome, lost: &CancellationToken) {
        loop {
            let finished = self.database.finish_run(&run.id, run.fence, outcome).await;
            if finished.is_ok() {
                return;
            }
            tokio::select! {
                () = lost.cancelled() => return,
                () = self.closing.cancelled() => return,
                () = sleep(MARK_AGAIN) => {}
            }
        }
    }

    /// Lets running steps end, then releases the remaining claims.
    async fn stop(&self) {
        self.runs.close();
        let in_time = timeout(FINISH_STEPS, self.runs.wait()).await.is_ok();
        if !in_time {
            for run in self.board.active.lock().values() {
                run.lost.cancel();
            }
            self.runs.wait().await;
        }
        let released = self.database.release_runs(&self.owner).await;
        let Err(error) = released else { return };
        let message = "claims cannot be released and expire with their lease";
        // During a database outage, runners are built and end one after another without having
        // claimed anything.
        if self.board.claimed.load(Ordering::Relaxed) {
            tracing::warn!(%error, "{message}");
        } else {
            tracing::debug!(%error, "{message}");
        }
    }
}

fn retry_of(definition: &Workflow) -> StepRetry {
    match definition {
        Workflow::Http { retry, .. } => *retry,
        Workflow::Echo { .. } | Workflow::Temporal { .. } => StepRetry {
            max_attempts: 1,
            initial_backoff: Duration::ZERO,
            max_backoff: Duration::ZERO,
            multiplier: 1.0,
        },
    }
}

fn completed(result: Json) -> Outcome {
    Outcome {
        status: Status::Completed,
        result: Some(result),
        error: None,
        started_at: None,
        finished_at: Some(time::now()),
    }
}

fn ended(status: Status, error: &str) -> Outcome {
    Outcome::ended(status, error, time::now())
}
