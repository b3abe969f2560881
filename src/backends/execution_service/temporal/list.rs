//! Finding what has ended.

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

/// Executions of a list that are described at a time.
const DESCRIBED_AT_ONCE: usize = 8;

/// Runs asked for at a time: the server's own maximum, or so few that tests need several pages.
const PAGE: i32 = if cfg!(test) { 8 } else { 1000 };

/// A span of time in which more runs close than fit into a page is shortened, but not below this.
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
    /// Servers on plain SQL list the newest first and cannot be told otherwise. They also allow few
    /// such calls, about ten a second. So the time since then is taken in spans that fit into a
    /// page: one span as a rule, and several when much has ended.
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
                // What a page covers at the new end tells what one covers at the old end, roughly.
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

    /// The execution that ended with `run`; nothing if it went on with another run, or is gone.
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
