//! The tasks that outlive their creator. They are tracked, so that shutdown can wait for them, and
//! supervised, so that a task that ends is noticed and restarted.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    task::{AbortHandle, JoinError, JoinHandle},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    model::backoff::Backoff,
    telemetry::metrics::{Counter, TaskMetrics},
};

/// Pauses before a task that ended is restarted.
const RESTART: Backoff = Backoff::doubling(Duration::from_millis(100), Duration::from_secs(10));
/// A task that has run for this long counts as recovered.
const WELL_AFTER: Duration = Duration::from_mins(1);
/// A task that ended this many times without recovering is hopeless.
const HOPELESS_AFTER: u32 = 5;

/// The tasks of the program.
#[derive(Clone, Default)]
pub struct Tasks(Arc<Shared>);

#[derive(Default)]
struct Shared {
    tracker: TaskTracker,
    metrics: TaskMetrics,
    kept: Mutex<Vec<Arc<Kept>>>,
}

/// A task that is kept running.
struct Kept {
    name: String,
    /// True when the task keeps ending.
    hopeless: AtomicBool,
    /// The handle of the current run.
    running: Mutex<Option<AbortHandle>>,
    restarts: Counter,
}

impl Tasks {
    /// No task yet. `metrics` counts restarts.
    #[must_use]
    pub fn new(metrics: TaskMetrics) -> Self {
        Self(Arc::new(Shared { metrics, ..Shared::default() }))
    }

    /// Starts a task that may end by itself.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.tracker.spawn(task)
    }

    /// Keeps `task` of `owner` running until `stop`, which the task watches itself. Whenever it
    /// panics or returns before, the end is logged and counted, and the task is restarted. The
    /// handle completes when the task has ended after `stop`.
    pub fn keep<S, F, Fut>(
        &self,
        name: impl Into<String>,
        stop: &CancellationToken,
        owner: &Arc<S>,
        task: F,
    ) -> JoinHandle<()>
    where
        S: Send + Sync + ?Sized + 'static,
        F: Fn(Arc<S>, CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let kept = Arc::new(Kept {
            restarts: self.0.metrics.restarted(&name),
            name,
            hopeless: AtomicBool::new(false),
            running: Mutex::default(),
        });
        self.0.kept.lock().push(Arc::clone(&kept));
        let (tasks, stop, owner) = (self.clone(), stop.clone(), Arc::clone(owner));
        self.spawn(async move {
            let start = || tasks.0.tracker.spawn(task(Arc::clone(&owner), stop.clone()));
            kept.run(&stop, &start).await;
            tasks.0.kept.lock().retain(|other| !Arc::ptr_eq(other, &kept));
        })
    }

    /// Like [`Tasks::keep`], for a task that never ends by itself and is dropped at `stop`.
    pub fn keep_until<S, F, Fut>(
        &self,
        name: impl Into<String>,
        stop: &CancellationToken,
        owner: &Arc<S>,
        task: F,
    ) -> JoinHandle<()>
    where
        S: Send + Sync + ?Sized + 'static,
        F: Fn(Arc<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.keep(name, stop, owner, move |owner, stop| {
            let task = task(owner);
            async move {
                stop.run_until_cancelled(task).await;
            }
        })
    }

    /// The name of a task that keeps ending, if there is one.
    #[must_use]
    pub fn hopeless(&self) -> Option<String> {
        let kept = self.0.kept.lock();
        let hopeless = kept.iter().find(|task| task.hopeless.load(Ordering::Relaxed));
        hopeless.map(|task| task.name.clone())
    }

    /// Marks that no further tasks will be added, so that [`Tasks::wait`] can complete.
    pub fn close(&self) {
        self.0.tracker.close();
    }

    /// Waits until every task has ended, after [`Tasks::close`].
    pub async fn wait(&self) {
        self.0.tracker.wait().await;
    }

    /// The names of the supervised tasks.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.kept.lock().iter().map(|task| task.name.clone()).collect()
    }

    /// Ends a task as a panic would.
    #[cfg(test)]
    pub(crate) fn kill(&self, name: &str) {
        for task in self.0.kept.lock().iter().filter(|task| task.name == name) {
            if let Some(running) = &*task.running.lock() {
                running.abort();
            }
        }
    }

    /// The number of restarts of a task.
    #[cfg(test)]
    pub(crate) fn restarts(&self, name: &str) -> u64 {
        let kept = self.0.kept.lock();
        kept.iter().filter(|task| task.name == name).map(|task| task.restarts.get()).sum()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("running", &self.0.tracker.len()).finish_non_exhaustive()
    }
}

impl Kept {
    async fn run(
        &self,
        stop: &CancellationToken,
        start: &(dyn Fn() -> JoinHandle<()> + Send + Sync),
    ) {
        let mut failures = 0;
        loop {
            let begin = Instant::now();
            let mut running = start();
            *self.running.lock() = Some(running.abort_handle());
            let ended = tokio::select! {
                biased;
                ended = &mut running => ended,
                () = sleep(WELL_AFTER), if failures > 0 => {
                    self.hopeless.store(false, Ordering::Relaxed);
                    running.await
                }
            };
            if stop.is_cancelled() {
                return;
            }
            failures = if begin.elapsed() < WELL_AFTER { failures + 1 } else { 1 };
            self.hopeless.store(failures >= HOPELESS_AFTER, Ordering::Relaxed);
            self.restarts.inc();
            let (task, how) = (&*self.name, how(ended));
            tracing::error!(task, failures, "the task {task} {how}; restarting it");
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = sleep(RESTART.pause_after(failures)) => {}
            }
        }
    }
}

fn how(ended: Result<(), JoinError>) -> &'static str {
    match ended {
        Ok(()) => "has returned",
        Err(error) if error.is_panic() => "has panicked",
        Err(_cancelled) => "was aborted",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct World {
        starts: AtomicUsize,
        is_well: AtomicBool,
    }

    impl World {
        async fn panics_then_returns_then_runs(self: Arc<Self>, stop: CancellationToken) {
            let number = self.starts.fetch_add(1, Ordering::SeqCst);
            assert_ne!(number, 0, "the first one panics");
            if number > 1 {
                stop.cancelled().await;
            }
        }

        async fn returns_unless_well(self: Arc<Self>) {
            if self.is_well.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_is_started_again_until_it_is_to_stop() {
        let (tasks, stop, world) =
            (Tasks::default(), CancellationToken::new(), Arc::<World>::default());
        let ended = tasks.keep("worker", &stop, &world, World::panics_then_returns_then_runs);
        let starts = async |number| {
            while world.starts.load(Ordering::SeqCst) < number {
                sleep(Duration::from_millis(10)).await;
            }
        };
        starts(3).await;
        assert_eq!((tasks.restarts("worker"), tasks.hopeless()), (2, None));
        tasks.kill("worker");
        starts(4).await;
        stop.cancel();
        ended.await.unwrap();
        assert_eq!(tasks.names(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ends_again_and_again_is_hopeless_until_it_has_run_for_a_while() {
        let (tasks, stop, world) =
            (Tasks::default(), CancellationToken::new(), Arc::<World>::default());
        tasks.keep_until("worker", &stop, &world, World::returns_unless_well);
        while tasks.restarts("worker") < u64::from(HOPELESS_AFTER) {
            assert_eq!(tasks.hopeless(), None);
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(tasks.hopeless().as_deref(), Some("worker"));
        world.is_well.store(true, Ordering::SeqCst);
        while tasks.hopeless().is_some() {
            sleep(Duration::from_secs(1)).await;
        }
    }
}
