//! Accepts work.

use std::time::Duration;

use tokio::time::timeout_at;

use super::commits::{Commit, Commits, Sharing};
use crate::{
    backends::database::{Acceptance, Admission, Database, KeyUse, Work},
    connection::{self, Client},
    error::{Error, ErrorKind},
    model::json::Fingerprint,
    tasks::Tasks,
};

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
pub struct Acceptor {
    commits: Commits<Accepting>,
    keep_answers: Duration,
}

/// Stores the requests that share a commit.
#[derive(Debug)]
struct Accepting {
    database: Client<dyn Database>,
}

impl Commit for Accepting {
    type Item = Admission;
    type Answer = Acceptance;

    fn rows(admission: &Admission) -> usize {
        match &admission.work {
            Work::Events(events) => events.len(),
            Work::Execution(_) => 1,
        }
    }

    fn names<'a>(admission: &'a Admission, add: &mut dyn FnMut(&[&'a str])) {
        if let Some(key) = &admission.key {
            add(&["key", &key.scope, &key.key]);
        }
        match &admission.work {
            Work::Events(events) => {
                for new in events {
                    add(&["event", &new.event.source, &new.event.id]);
                }
            }
            Work::Execution(new) => add(&["execution", &new.execution.id]),
        }
    }

    async fn store(&self, batch: &[&Admission]) -> Result<Vec<Acceptance>, Error> {
        self.database.accept(batch).await
    }
}

impl Acceptor {
    /// Accepts into `database`. While requests arrive concurrently, a commit waits for `linger` so
    /// that more of them share it, if that is short compared with the commits; at most `most`
    /// commits are under way at the same time.
    #[must_use]
    pub fn new(
        database: Client<dyn Database>,
        tasks: Tasks,
        sharing: Sharing,
        keep_answers: Duration,
    ) -> Self {
        Self { commits: Commits::new(Accepting { database }, sharing, tasks), keep_answers }
    }

    /// The use of a key by a request that will be answered with `answer`.
    pub(super) fn key_use(&self, key: RequestKey, answer: String) -> KeyUse {
        let RequestKey { scope, key, fingerprint } = key;
        KeyUse { scope, key, fingerprint, answer, keep_for: self.keep_answers }
    }

    /// Once this returns `Stored`, the work is committed, possibly by an earlier attempt. The work
    /// of a caller that does not wait for the answer may be stored as well.
    ///
    /// # Errors
    /// `Conflict` and `KeyReused` by the idempotency key; `OutcomeUnknown` when the answer to the
    /// commit was lost or did not come in time; or an error of the database.
    pub(super) async fn accept(&self, admission: Admission) -> Result<Acceptance, Error> {
        let answered = self.commits.add(admission);
        let answered = match connection::deadline() {
            Some(deadline) => timeout_at(deadline, answered).await.ok().flatten(),
            None => answered.await,
        };
        match answered {
            Some(Err(error)) if error.outcome_unknown() => Err(unknown().with_source(error)),
            Some(Err(error)) => Err(error),
            Some(Ok(acceptance)) => allowed_by_key(acceptance),
            None => Err(unknown()),
        }
    }
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
        let acceptor = Acceptor::new(database.client(), tasks, Sharing::alone(), minute);
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
