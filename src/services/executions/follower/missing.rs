//! Executions that the backend does not know.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Answers after which an execution counts as lost.
const ANSWERS: u32 = 3;
/// How much longer the answers must agree while the backend knows none of the executions it is asked
/// about: it may be another backend, or one that has yet to receive its data.
const MASS_FACTOR: u32 = 10;
/// Executions of which some must be known.
const MASS: usize = 5;

/// Remembers which executions the backend did not know, and since when. A loss is final, so it takes
/// several answers over a time.
#[derive(Debug)]
pub(super) struct Missing {
    patience: Duration,
    executions: HashMap<String, Unknown>,
}

#[derive(Debug)]
struct Unknown {
    since: Instant,
    answers: u32,
}

impl Missing {
    /// A loss takes answers over `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, executions: HashMap::new() }
    }

    /// Records the answers of one round. Returns the executions that are lost.
    pub(super) fn note(&mut self, known: &[String], unknown: Vec<String>) -> Vec<String> {
        for id in known {
            self.executions.remove(id);
        }
        let alone = known.is_empty() && unknown.len() >= MASS;
        let patience = if alone { self.patience * MASS_FACTOR } else { self.patience };
        if alone && unknown.iter().all(|id| !self.executions.contains_key(id)) {
            tracing::warn!(
                executions = unknown.len(),
                "the execution service knows none of the executions it was asked about; if it is \
                 another server, or workflow_id_prefix has changed, correct the configuration: \
                 they count as lost after {}",
                humantime::format_duration(patience)
            );
        }
        let now = Instant::now();
        let mut lost = Vec::new();
        for id in unknown {
            let missing =
                self.executions.entry(id.clone()).or_insert(Unknown { since: now, answers: 0 });
            missing.answers += 1;
            if missing.answers >= ANSWERS && now - missing.since >= patience {
                self.executions.remove(&id);
                lost.push(id);
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| n.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_execution_is_lost_after_several_answers_over_a_time() {
        let mut missing = Missing::new(PATIENCE);
        let known = ["known".to_owned()];
        assert_eq!(missing.note(&known, ids(1)), [""; 0]);
        advance(PATIENCE).await;
        assert_eq!(missing.note(&known, ids(1)), [""; 0], "two answers are few");
        assert_eq!(missing.note(&known, ids(1)), ["0"]);
        for _ in 0..10 {
            assert_eq!(missing.note(&known, ids(1)), [""; 0], "quick answers may have one cause");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_found_again_is_not_lost() {
        let mut missing = Missing::new(PATIENCE);
        for _ in 0..2 {
            missing.note(&[], ids(1));
            advance(PATIENCE).await;
        }
        missing.note(&ids(1), Vec::new());
        assert_eq!(missing.note(&[], ids(1)), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_knows_none_of_many_is_given_far_more_time() {
        let mut missing = Missing::new(PATIENCE);
        for _ in 0..10 {
            assert_eq!(missing.note(&[], ids(100)), [""; 0]);
            advance(PATIENCE).await;
        }
        assert_eq!(missing.note(&[], ids(100)).len(), 100);
    }
}
