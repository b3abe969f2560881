//! Accepts work: requests that arrive during a commit share the next one.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};
use tracing::{Instrument, Span};

use crate::{
    backends::database::{Acceptance, Admission, Database, KeyUse, Work},
    connection::{self, Client},
    error::{Error, ErrorKind},
    model::json::Fingerprint,
    tasks::Tasks,
};

/// The most rows of one commit, except that a single request is never divided.
const MOST_ROWS: usize = 500;

/// A commit waits for others if commits take at least this many times as long as the wait.
const WORTH: u32 = 4;

/// The number of requests of one commit that wait individually for locks of other transactions. A
/// request that its own event or id keeps waiting is among them; where several wait, a whole table
/// is locked.
const MOST_WAITING: usize = 2;

/// An `Idempotency-Key` as received with a request.
#[derive(Clone, Debug)]
pub struct RequestKey {
    /// Principal, method and route.
    pub scope: String,
    /// The key.
    pub key: String,
    /// The fingerprint of the request body.
    pub fingerprint: Fingerprint,
}

/// Accepts work into the database.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    database: Client<dyn Database>,
    tasks: Tasks,
    linger: Duration,
    keep_answers: Duration,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Request>,
    /// True while a task commits the waiting requests. At most one such task exists.
    committing: bool,
    last: Commit,
}

/// A finished commit.
#[derive(Clone, Copy, Debug, Default)]
struct Commit {
    /// The number of requests that shared it.
    requests: usize,
    took: Duration,
}

impl Commit {
    /// The time that the next commit waits for the clients that shared this one to send again: zero
    /// unless the wait is short compared with a commit of their own.
    fn linger(self, most: Duration) -> Duration {
        let pays = self.requests > 1 && self.took >= most * WORTH;
        if pays { most } else { Duration::ZERO }
    }
}

#[derive(Debug)]
struct Request {
    admission: Admission,
    answer: oneshot::Sender<Result<Acceptance, Error>>,
    /// The request's span, in which a commit that it begins is logged.
    span: Span,
}

impl Request {
    fn rows(&self) -> usize {
        match &self.admission.work {
            Work::Events(events) => events.len(),
            Work::Execution(_) => 1,
        }
    }
}

impl Acceptor {
    /// Accepts into `database`. While requests arrive concurrently, a commit waits for `linger` so
    /// that more of them share it, if that is short compared with the commits.
    #[must_use]
    pub fn new(
        database: Client<dyn Database>,
        tasks: Tasks,
        linger: Duration,
        keep_answers: Duration,
    ) -> Self {
        Self(Arc::new(Shared { database, tasks, linger, keep_answers, queue: Mutex::default() }))
    }

    /// The use of a key by a request that will be answered with `answer`.
    pub(super) fn key_use(&self, key: RequestKey, answer: String) -> KeyUse {
        let RequestKey { scope, key, fingerprint } = key;
        KeyUse { scope, key, fingerprint, answer, keep_for: self.0.keep_answers }
    }

    /// Once this returns `Stored`, the work is committed, possibly by an earlier attempt. The work
    /// of a caller that does not wait for the answer may be stored as well.
    ///
    /// # Errors
    /// `Conflict` and `KeyReused` by the idempotency key; `OutcomeUnknown` when the answer to the
    /// commit was lost or did not come in time; or an error of the database.
    pub(super) async fn accept(&self, admission: Admission) -> Result<Acceptance, Error> {
        let (answer, answered) = oneshot::channel();
        let request = Request { admission, answer, span: Span::current() };
        if let Some(turn) = self.0.join(request) {
            // A separate task, because the caller may go away while others share its commit.
            self.0.tasks.spawn(turn.commit_all());
        }
        let answered = match connection::deadline() {
            Some(deadline) => timeout_at(deadline, answered).await.ok(),
            None => Some(answered.await),
        };
        match answered {
            Some(Ok(Err(error))) if error.outcome_unknown() => Err(unknown().with_source(error)),
            Some(Ok(Err(error))) => Err(error),
            Some(Ok(Ok(acceptance))) => allowed_by_key(acceptance),
            Some(Err(_)) | None => Err(unknown()),
        }
    }
}

/// The right to commit, which one task holds at a time.
struct Turn {
    shared: Arc<Shared>,
    ended: bool,
}

impl Turn {
    /// Commits until no request waits.
    async fn commit_all(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(batch) = shared.next_batch().await {
            let (span, requests) = (batch[0].span.clone(), batch.len());
            let begin = Instant::now();
            shared.commit(batch).instrument(span).await;
            shared.queue.lock().last = Commit { requests, took: begin.elapsed() };
        }
        self.ended = true;
    }
}

impl Drop for Turn {
    /// Releases the turn after a panic, so that the next request takes it.
    fn drop(&mut self) {
        if !self.ended {
            self.shared.queue.lock().committing = false;
        }
    }
}

impl Shared {
    /// Returns the turn, with the duty to commit, unless a task holds it.
    fn join(self: &Arc<Self>, request: Request) -> Option<Turn> {
        let mut queue = self.queue.lock();
        queue.waiting.push(request);
        let begins = !std::mem::replace(&mut queue.committing, true);
        begins.then(|| Turn { shared: Arc::clone(self), ended: false })
    }

    /// The requests to commit next. When there are none, the turn ends under the same lock, so that
    /// no request joins in between.
    async fn next_batch(&self) -> Option<Vec<Request>> {
        let linger = self.queue.lock().last.linger(self.linger);
        if !linger.is_zero() {
            sleep(linger).await;
        }
        let mut queue = self.queue.lock();
        let mut rows = 0;
        let fitting = queue.waiting.iter().take_while(|request| {
            let fits = rows == 0 || rows + request.rows() <= MOST_ROWS;
            rows += request.rows();
            fits
        });
        let count = fitting.count();
        if count == 0 {
            queue.committing = false;
            return None;
        }
        Some(queue.waiting.drain(..count).collect())
    }

    async fn commit(&self, batch: Vec<Request>) {
        let admissions: Vec<&Admission> = batch.iter().map(|request| &request.admission).collect();
        let stored = self.store(&admissions).await;
        match stored {
            Ok(acceptances) => {
                for (request, acceptance) in batch.into_iter().zip(acceptances) {
                    reply(request, Ok(acceptance));
                }
            }
            // The database may object to only one of the requests, and the others must not suffer
            // for it.
            Err(error) if batch.len() > 1 && may_be_one_of_them(&error) => {
                self.commit_each(batch).await;
            }
            Err(error) => {
                for request in batch {
                    reply(request, Err(error.clone()));
                }
            }
        }
    }

    async fn commit_each(&self, batch: Vec<Request>) {
        let mut waited = Vec::new();
        for request in batch {
            if waited.len() == MOST_WAITING {
                reply(request, Err(Error::clone(&waited[0])));
                continue;
            }
            let stored = self.store(&[&request.admission]).await;
            waited.extend(stored.as_ref().err().filter(|it| it.kind() == ErrorKind::Busy).cloned());
            reply(request, stored.map(|mut acceptances| acceptances.remove(0)));
        }
    }

    async fn store(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        self.database.accept(batch).await
    }
}

fn reply(request: Request, answer: Result<Acceptance, Error>) {
    // The caller may have gone away.
    let _heard = request.answer.send(answer).is_ok();
}

/// True when the database answered, and did not report that it serves nobody.
fn may_be_one_of_them(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Busy) || !error.kind().is_outage()
}

fn unknown() -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "it is not known whether the request was accepted")
}

fn allowed_by_key(acceptance: Acceptance) -> Result<Acceptance, Error> {
    match acceptance {
        Acceptance::KeyReused => {
            let message = "the Idempotency-Key was used for another request";
            Err(Error::new(ErrorKind::KeyReused, message))
        }
        Acceptance::Busy => {
            let message = "the first request with this Idempotency-Key is not answered yet";
            Err(Error::new(ErrorKind::Conflict, message))
        }
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_lingers_for_those_of_the_last_where_commits_take_far_longer() {
        let millis = Duration::from_millis;
        let linger = |requests, took| Commit { requests, took: millis(took) }.linger(millis(1));
        assert_eq!(linger(2, 4), millis(1));
        assert_eq!(linger(2, 3), Duration::ZERO, "it costs more than it saves");
        assert_eq!(linger(1, 4), Duration::ZERO, "it was alone");
    }

    #[cfg(feature = "sqlite")]
    #[tokio::test]
    async fn requests_that_come_side_by_side_share_a_commit_and_a_bad_one_fails_alone() {
        use crate::{
            backends::database::{self, NewEvent},
            config::Pool,
            model::events::Event,
            telemetry::metrics::Metrics,
        };

        let new = || {
            let event = Event::new("t", None, None);
            let fingerprint = event.fingerprint();
            NewEvent { event, fingerprint }
        };
        let admission = |new| Admission { work: Work::Events(vec![new]), key: None };
        let folder = tempfile::tempdir().unwrap();
        let (metrics, tasks) = (Metrics::new("0", "0"), Tasks::default());
        let table = serde_json::json!({"path": folder.path().join("accepted.db")});
        let database = database::managed("sqlite", table, Pool::default(), &metrics, &tasks);
        let minute = Duration::from_mins(1);
        let acceptor = Acceptor::new(database.client(), tasks, Duration::ZERO, minute);
        let first = new();
        acceptor.accept(admission(first.clone())).await.unwrap();
        let mut all: Vec<NewEvent> = (0..60).map(|_| new()).collect();
        all[30] = NewEvent { fingerprint: new().fingerprint, ..first };
        // This test has one thread, so all requests arrive before their commit begins.
        let all = all.into_iter().map(|new| acceptor.accept(admission(new)));
        let all = futures_util::future::join_all(all).await;
        let all: Vec<Acceptance> = all.into_iter().map(Result::unwrap).collect();
        let mut expected = vec![Acceptance::Stored; 60];
        expected[30] = Acceptance::EventTaken(0);
        assert_eq!(all, expected);
        let two =
            r#"call_seconds_count{connection="database",operation="accept",outcome="success"} 2"#;
        assert!(metrics.text().lines().any(|line| line.ends_with(two)), "{}", metrics.text());
        database.close().await;
    }
}
