//! Commits that many callers share: those who come during a commit are part of the next one.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::{Instrument, Span};

use crate::{
    error::{Error, ErrorKind},
    tasks::Tasks,
};

/// The most rows of one commit, except that a single caller's are never divided.
const MOST_ROWS: usize = 500;

/// A commit waits for others if commits take at least this many times as long as the wait.
const WORTH: u32 = 4;

/// The number of callers of one commit that wait individually for locks of other transactions. A
/// caller that its own row keeps waiting is among them; where several wait, a whole table is locked.
const MOST_WAITING: usize = 2;

/// What is committed.
pub(super) trait Commit: Send + Sync + 'static {
    /// What one caller stores.
    type Item: std::fmt::Debug + Send + Sync;
    /// What it learns.
    type Answer: std::fmt::Debug + Send;

    /// The rows of `item`.
    fn rows(item: &Self::Item) -> usize;

    /// Adds what no other item of the same commit may name.
    fn names<'a>(item: &'a Self::Item, add: &mut dyn FnMut(&[&'a str]));

    /// Stores all items in one transaction, with one answer for each.
    fn store(
        &self,
        items: &[&Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, Error>> + Send;
}

/// How commits are shared.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// How long a commit waits for more, if that is short compared with the commits.
    pub linger: Duration,
    /// The most commits under way at the same time.
    pub most: usize,
}

#[cfg(test)]
impl Sharing {
    /// One commit at a time, at once.
    pub(super) fn alone() -> Self {
        Self { linger: Duration::ZERO, most: 1 }
    }
}

/// The commits of one kind.
#[derive(Debug)]
pub(super) struct Commits<C: Commit>(Arc<Shared<C>>);

impl<C: Commit> Clone for Commits<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
struct Shared<C: Commit> {
    kind: C,
    sharing: Sharing,
    tasks: Tasks,
    queue: Mutex<Queue<C>>,
    names: RandomState,
}

#[derive(Debug)]
struct Queue<C: Commit> {
    waiting: VecDeque<Caller<C>>,
    waiting_rows: usize,
    /// The tasks that commit.
    turns: usize,
    last: Last,
}

/// The last commit.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// The callers that shared it, and their rows.
    callers: usize,
    rows: usize,
    took: Duration,
}

impl Last {
    /// The time that the next commit waits for the callers of this one to come again: zero unless
    /// the wait is short compared with a commit of their own.
    fn linger(self, most: Duration) -> Duration {
        let pays = self.callers > 1 && self.took >= most * WORTH;
        if pays { most } else { Duration::ZERO }
    }
}

struct Caller<C: Commit> {
    item: C::Item,
    answer: oneshot::Sender<Result<C::Answer, Error>>,
    /// The span in which a commit that this caller begins is logged.
    span: Span,
}

impl<C: Commit> std::fmt::Debug for Caller<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Caller").field(&self.item).finish()
    }
}

impl<C: Commit> Commits<C> {
    pub(super) fn new(kind: C, sharing: Sharing, tasks: Tasks) -> Self {
        let queue =
            Queue { waiting: VecDeque::new(), waiting_rows: 0, turns: 0, last: Last::default() };
        let names = RandomState::new();
        Self(Arc::new(Shared { kind, sharing, tasks, queue: Mutex::new(queue), names }))
    }

    /// Queues an item at once, and returns what waits for its answer. The item is stored also if
    /// nobody waits; `None` when the commit died.
    pub(super) fn add(
        &self,
        item: C::Item,
    ) -> impl Future<Output = Option<Result<C::Answer, Error>>> + use<C> {
        let (answer, answered) = oneshot::channel();
        let caller = Caller { item, answer, span: Span::current() };
        if let Some(turn) = self.0.join(caller) {
            // A task of its own, because the caller may go away while others share its commit.
            self.0.tasks.spawn(turn.commit_all());
        }
        async { answered.await.ok() }
    }
}

/// The duty to commit what waits.
struct Turn<C: Commit> {
    shared: Arc<Shared<C>>,
    ended: bool,
}

impl<C: Commit> Turn<C> {
    /// Commits until nobody waits.
    async fn commit_all(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(batch) = shared.next_batch().await {
            let (span, callers) = (batch[0].span.clone(), batch.len());
            let rows = batch.iter().map(|caller| C::rows(&caller.item)).sum();
            let begin = Instant::now();
            shared.commit(batch).instrument(span).await;
            shared.queue.lock().last = Last { callers, rows, took: begin.elapsed() };
        }
        self.ended = true;
    }
}

impl<C: Commit> Drop for Turn<C> {
    /// Gives the turn back after a panic, so that the next caller takes it.
    fn drop(&mut self) {
        if !self.ended {
            self.shared.queue.lock().turns -= 1;
        }
    }
}

impl<C: Commit> Shared<C> {
    /// Returns a turn unless enough tasks commit.
    fn join(self: &Arc<Self>, caller: Caller<C>) -> Option<Turn<C>> {
        let mut queue = self.queue.lock();
        queue.waiting_rows += C::rows(&caller.item);
        queue.waiting.push_back(caller);
        // Another commit pays if it is as full as the last one.
        let pays = queue.turns == 0 || queue.waiting_rows >= queue.last.rows.max(1);
        if !pays || queue.turns == self.sharing.most {
            return None;
        }
        queue.turns += 1;
        Some(Turn { shared: Arc::clone(self), ended: false })
    }

    /// The callers of the next commit. When there are none, the turn ends under the same lock, so
    /// that nobody joins in between.
    async fn next_batch(&self) -> Option<Vec<Caller<C>>> {
        let linger = self.queue.lock().last.linger(self.sharing.linger);
        if !linger.is_zero() {
            sleep(linger).await;
        }
        let mut queue = self.queue.lock();
        let (count, rows) = self.fitting(&queue.waiting);
        if count == 0 {
            queue.turns -= 1;
            return None;
        }
        queue.waiting_rows -= rows;
        Some(queue.waiting.drain(..count).collect())
    }

    /// The callers that can share a commit, and their rows: up to the first that names the same as
    /// an earlier one, which is to find what that one has stored.
    fn fitting(&self, waiting: &VecDeque<Caller<C>>) -> (usize, usize) {
        let (mut count, mut rows) = (0, 0);
        let mut named = HashSet::new();
        for Caller { item, .. } in waiting {
            let mut new = true;
            C::names(item, &mut |name| new &= named.insert(self.names.hash_one(name)));
            let fits = count == 0 || (new && rows + C::rows(item) <= MOST_ROWS);
            if !fits {
                break;
            }
            count += 1;
            rows += C::rows(item);
        }
        (count, rows)
    }

    async fn commit(&self, batch: Vec<Caller<C>>) {
        let items: Vec<&C::Item> = batch.iter().map(|caller| &caller.item).collect();
        match self.kind.store(&items).await {
            Ok(answers) => {
                for (caller, answer) in batch.into_iter().zip(answers) {
                    reply(caller, Ok(answer));
                }
            }
            // The database may object to only one of them, and the others must not suffer for it.
            Err(error) if batch.len() > 1 && may_be_one_of_them(&error) => {
                self.commit_each(batch).await;
            }
            Err(error) => {
                for caller in batch {
                    reply(caller, Err(error.clone()));
                }
            }
        }
    }

    async fn commit_each(&self, batch: Vec<Caller<C>>) {
        let mut waited: Vec<Error> = Vec::new();
        for caller in batch {
            if waited.len() == MOST_WAITING {
                reply(caller, Err(waited[0].clone()));
                continue;
            }
            let stored = self.kind.store(&[&caller.item]).await;
            waited.extend(stored.as_ref().err().filter(|it| it.kind() == ErrorKind::Busy).cloned());
            reply(caller, stored.map(|mut answers| answers.remove(0)));
        }
    }
}

fn reply<C: Commit>(caller: Caller<C>, answer: Result<C::Answer, Error>) {
    // The caller may have gone away.
    let _heard = caller.answer.send(answer).is_ok();
}

/// True when the database answered, and did not report that it serves nobody.
fn may_be_one_of_them(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy) || !error.kind().is_outage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_lingers_for_those_of_the_last_where_commits_take_far_longer() {
        let millis = Duration::from_millis;
        let linger =
            |callers, took| Last { callers, rows: callers, took: millis(took) }.linger(millis(1));
        assert_eq!(linger(2, 4), millis(1));
        assert_eq!(linger(2, 3), Duration::ZERO, "it costs more than it saves");
        assert_eq!(linger(1, 4), Duration::ZERO, "it was alone");
    }
}
