//! Finds ended executions.

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::SignedDuration;
use temporalio_common::protos::temporal::api::{
    common::v1::WorkflowExecution, workflow::v1::WorkflowExecutionInfo,
    workflowservice::v1::ListWorkflowExecutionsRequest,
};

use super::{
    Temporal,
    answers::{body, timestamp},
    start::REQUEST_ID_MEMO,
};
use crate::{
    backends::execution_service::Description,
    error::{Error, ErrorKind},
    model::time::{self, Timestamp},
};

/// Executions of a list that are described concurrently.
const DESCRIBED_AT_ONCE: usize = 8;

/// Page size: the server's own maximum, or small enough that tests need several pages.
const PAGE: i32 = if cfg!(test) { 8 } else { 1000 };

/// The shortest time span; a span in which more runs close than fit into a page is shortened down
/// to this.
const SHORTEST_SPAN: SignedDuration = SignedDuration::from_millis(1);

/// How far the server's clock may be ahead of ours.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// Our runs that closed in a span of time, oldest first.
struct Page {
    runs: Vec<WorkflowExecution>,
    /// Where more runs closed than fit into the page: the time since which it is complete.
    complete_since: Option<Timestamp>,
}

impl Temporal {
    /// Executions that ended at or after `since`, oldest first.
    ///
    /// Servers on plain SQL always list the newest first, and allow only about ten such calls a
    /// second. So the time since `since` is split into spans that fit into a page: usually one,
    /// several when many runs have ended.
    pub(super) async fn ended_since(
        &self,
        since: Timestamp,
        limit: usize,
    ) -> Result<Vec<Description>, Error> {
        let end = time::now().saturating_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX);
        let mut from = since;
        let mut span = end.duration_since(from);
        let mut found = Vec::new();
        while from < end && found.len() < limit {
            let until = from.saturating_add(span).unwrap_or(end).min(end);
            let page = self.closed_between(from, until).await?;
            if let Some(complete_since) = page.complete_since
                && span > SHORTEST_SPAN
            {
                // The time that a page covers at the new end predicts roughly what it covers at the
                // old end.
                let covered = until.duration_since(complete_since) / 4 * 3;
                span = covered.min(span / 2).max(SHORTEST_SPAN);
                continue;
            }
            let ended: Vec<_> = stream::iter(page.runs)
                .map(|run| self.ended_with(run))
                .buffered(DESCRIBED_AT_ONCE)
                .try_filter_map(async |ended| Ok(ended))
                .take(limit - found.len())
                .try_collect()
                .await?;
            found.extend(ended);
            from = until;
            span = end.duration_since(from);
        }
        Ok(found)
    }

    async fn closed_between(&self, from: Timestamp, until: Timestamp) -> Result<Page, Error> {
        let of_ours = match self.config.workflow_id_prefix.as_str() {
            "" => String::new(),
            prefix => format!(" AND WorkflowId STARTS_WITH '{prefix}'"),
        };
        let message = ListWorkflowExecutionsRequest {
            namespace: self.config.namespace.clone(),
            page_size: PAGE,
            query: format!(
                "CloseTime >= '{from}' AND CloseTime < '{until}' \
                 AND ExecutionStatus != 'ContinuedAsNew'{of_ours}"
            ),
            ..Default::default()
        };
        let answer = body(
            self.ask(message, async |mut rpc, request| rpc.list_workflow_executions(request).await)
                .await,
        )?;
        let closed_at = |run: &WorkflowExecutionInfo| {
            run.close_time.as_ref().map(|at| timestamp(at.seconds, at.nanos))
        };
        let mut runs = answer.executions;
        runs.sort_by_key(closed_at);
        let complete = answer.next_page_token.is_empty();
        let oldest = runs.first().and_then(closed_at);
        runs.retain(|run| {
            let memo = run.memo.as_ref();
            memo.is_some_and(|memo| memo.fields.contains_key(REQUEST_ID_MEMO))
        });
        Ok(Page {
            runs: runs.into_iter().filter_map(|run| run.execution).collect(),
            complete_since: oldest.filter(|_| !complete),
        })
    }

    /// The execution that ended with `run`; `None` if it continued with another run or no longer
    /// exists.
    async fn ended_with(&self, run: WorkflowExecution) -> Result<Option<Description>, Error> {
        let prefix = self.config.workflow_id_prefix.as_str();
        let Some(id) = run.workflow_id.strip_prefix(prefix) else {
            return Ok(None);
        };
        let described = async {
            let info = self.info(id).await?;
            let newest = info.execution.as_ref().is_some_and(|newest| newest.run_id == run.run_id);
            if newest { self.outcome(info).await.map(Some) } else { Ok(None) }
        };
        match described.await {
            Ok(outcome) => Ok(outcome.map(|outcome| Description { id: id.to_owned(), outcome })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
