//! Lists executions, by the server's index of them, which may lag behind.

use futures_util::{StreamExt, TryStreamExt, stream};
use temporalio_common::protos::temporal::api::{
    common::v1::WorkflowExecution,
    history::v1::history_event::Attributes,
    workflow::v1::WorkflowExecutionInfo,
    workflowservice::v1::{ListWorkflowExecutionsRequest, ListWorkflowExecutionsResponse},
};

use super::{
    Temporal,
    answers::{body, ending, timestamp},
    start::REQUEST_ID_MEMO,
    status,
};
use crate::{
    backends::execution_service::{Description, Page, PageToken},
    error::{Error, ErrorKind},
    model::{
        executions::{ListedEnd, Outcome, Status},
        time::Timestamp,
    },
};

/// Ended executions whose outcomes are read concurrently.
const READ_AT_ONCE: usize = 32;

/// Page size: the server's own maximum, or small enough that tests need several pages.
const PAGE: i32 = if cfg!(test) { 8 } else { 1000 };

impl Temporal {
    /// Executions that ended at or after `since`. A run that continues as another has not ended.
    pub(super) async fn list_ended(
        &self,
        since: Timestamp,
        page: Option<&PageToken>,
    ) -> Result<Page<ListedEnd>, Error> {
        let query = format!("CloseTime >= '{since}' AND ExecutionStatus != 'ContinuedAsNew'");
        let listed = self.list(query, page).await?;
        our_page(listed, |run| self.listed_end(run).transpose())
    }

    /// Executions that are running.
    pub(super) async fn list_running(
        &self,
        page: Option<&PageToken>,
    ) -> Result<Page<String>, Error> {
        let listed = self.list("ExecutionStatus = 'Running'".to_owned(), page).await?;
        our_page(listed, |run| self.id_of(run.execution.as_ref()?).map(Ok))
    }

    async fn list(
        &self,
        query: String,
        page: Option<&PageToken>,
    ) -> Result<ListWorkflowExecutionsResponse, Error> {
        let query = match self.config.workflow_id_prefix.as_str() {
            "" => query,
            prefix => format!("{query} AND WorkflowId STARTS_WITH '{prefix}'"),
        };
        let message = ListWorkflowExecutionsRequest {
            namespace: self.config.namespace.clone(),
            page_size: PAGE,
            query,
            next_page_token: page.map(|token| token.0.clone()).unwrap_or_default(),
        };
        body(
            self.ask(message, async |mut rpc, request| rpc.list_workflow_executions(request).await)
                .await,
        )
    }

    fn id_of(&self, run: &WorkflowExecution) -> Option<String> {
        run.workflow_id.strip_prefix(&self.config.workflow_id_prefix).map(ToOwned::to_owned)
    }

    fn listed_end(&self, run: &WorkflowExecutionInfo) -> Result<Option<ListedEnd>, Error> {
        let found = run.execution.as_ref().and_then(|found| Some((self.id_of(found)?, found)));
        let (Some((id, found)), Some(closed)) = (found, &run.close_time) else { return Ok(None) };
        let started_at = run.start_time.as_ref().map(|at| timestamp(at.seconds, at.nanos));
        Ok(Some(ListedEnd {
            id,
            run: found.run_id.clone(),
            status: status(run.status())?,
            started_at,
            is_first_run: is_first(run, found),
            ended_at: timestamp(closed.seconds, closed.nanos),
        }))
    }

    /// The outcomes of executions that a list showed as ended, except of those that continue.
    pub(super) async fn outcomes_of(&self, ended: &[ListedEnd]) -> Result<Vec<Description>, Error> {
        stream::iter(ended.to_vec())
            .map(|end| async move { self.outcome_of(&end).await })
            .buffered(READ_AT_ONCE)
            .try_filter_map(async |described| Ok(described))
            .try_collect()
            .await
    }

    async fn outcome_of(&self, end: &ListedEnd) -> Result<Option<Description>, Error> {
        // A reset terminates the old run, and the execution goes on with a new one.
        let read = match end.status {
            Status::Terminated => self.described_end(&end.id).await,
            _ => self.outcome_of_run(end).await,
        };
        match read {
            // The run was deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read,
        }
    }

    async fn described_end(&self, id: &str) -> Result<Option<Description>, Error> {
        let described = self.description(id).await?;
        Ok(described.outcome.status.is_terminal().then_some(described))
    }

    async fn outcome_of_run(&self, end: &ListedEnd) -> Result<Option<Description>, Error> {
        let run = WorkflowExecution { run_id: end.run.clone(), ..self.newest_run(&end.id) };
        let closed_by = self.closing_event(run).await?;
        if continues(closed_by.as_ref()) {
            return Ok(None);
        }
        let (result, error) = ending(closed_by);
        let finished_at = Some(end.ended_at);
        let outcome =
            Outcome { status: end.status, result, error, started_at: end.started_at, finished_at };
        let ran_for = end.is_first_run.then_some(end.started_at).flatten();
        let ran_for = ran_for.map(|at| end.ended_at.duration_since(at));
        Ok(Some(Description { id: end.id.clone(), outcome, ran_for }))
    }
}

/// Our runs of a list, which may show those of others.
fn our_page<T>(
    listed: ListWorkflowExecutionsResponse,
    item: impl Fn(&WorkflowExecutionInfo) -> Option<Result<T, Error>>,
) -> Result<Page<T>, Error> {
    let is_ours = |run: &&WorkflowExecutionInfo| {
        let memo = run.memo.as_ref();
        memo.is_some_and(|memo| memo.fields.contains_key(REQUEST_ID_MEMO))
    };
    let items = listed.executions.iter().filter(is_ours).filter_map(item);
    Ok(Page {
        items: items.collect::<Result<Vec<T>, Error>>()?,
        next: Some(PageToken(listed.next_page_token)).filter(|token| !token.0.is_empty()),
    })
}

/// False for the last of a chain of runs: its start says nothing about that of the execution.
pub(super) fn is_first(info: &WorkflowExecutionInfo, run: &WorkflowExecution) -> bool {
    // Lists do not say it.
    info.first_run_id.is_empty() || info.first_run_id == run.run_id
}

/// True for a run that another one follows, after a failure or at its next time.
fn continues(closed_by: Option<&Attributes>) -> bool {
    use Attributes as Event;
    let next = match closed_by {
        Some(Event::WorkflowExecutionCompletedEventAttributes(event)) => {
            &event.new_execution_run_id
        }
        Some(Event::WorkflowExecutionFailedEventAttributes(event)) => &event.new_execution_run_id,
        Some(Event::WorkflowExecutionTimedOutEventAttributes(event)) => &event.new_execution_run_id,
        _ => return false,
    };
    !next.is_empty()
}
