//! Starts executions on the server.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use temporalio_common::protos::temporal::api::{
    common::v1::{Header, Memo, Payloads, WorkflowType},
    enums::v1::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy},
    taskqueue::v1::TaskQueue,
    workflowservice::v1::StartWorkflowExecutionRequest,
};

use super::{Temporal, answers::to_payload};
use crate::{
    error::{Error, ErrorKind},
    model::{
        executions::{StartRequest, StepRetry, Workflow},
        json::Json,
    },
};

/// The workflow type that `agentarea-api worker` registers.
const WORKFLOW_TYPE: &str = "AgentAreaWorkflow";

/// The memo field with the request id that started a run. Unlike the server's own record of the id,
/// the memo survives when the run is reset or continued as new.
pub(super) const REQUEST_ID_MEMO: &str = "agentarea_request_id";

/// Extra time before Temporal times a step out, so that the step can first report its own, better
/// explained timeout.
const STEP_MARGIN: Duration = Duration::from_secs(30);

/// The argument of [`WORKFLOW_TYPE`]. The worker takes the step from its own configuration, so that
/// users who may start workflows cannot make it call arbitrary URLs. Timeout and retries are part
/// of the history, so that a replay makes the same decisions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Argument {
    /// The workflow's name.
    pub(super) workflow: String,
    /// The execution's id.
    pub(super) execution: String,
    pub(super) input: Json,
    /// Time for one attempt.
    pub(super) timeout: Duration,
    /// The retry policy; unlimited if unset.
    pub(super) retry: Option<StepRetry>,
    /// Its trace; absent in executions started by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) traceparent: Option<String>,
}

impl Temporal {
    pub(super) fn start_message(
        &self,
        request: &StartRequest,
    ) -> Result<StartWorkflowExecutionRequest, Error> {
        let own_queue = &self.config.task_queue;
        let (workflow_type, task_queue, argument) = match &request.definition {
            Workflow::Temporal { workflow_type, task_queue } => {
                let queue = task_queue.as_ref().unwrap_or(own_queue);
                (workflow_type.as_str(), queue, to_payload(&request.input)?)
            }
            _ => (WORKFLOW_TYPE, own_queue, to_payload(&argument(request))?),
        };
        let too_long = |_| Error::new(ErrorKind::InvalidInput, "the timeout is too long");
        let timeout = request.timeout.map(TryInto::try_into).transpose().map_err(too_long)?;
        let request_id = to_payload(&request.request_id)?;
        Ok(StartWorkflowExecutionRequest {
            namespace: self.config.namespace.clone(),
            workflow_id: self.workflow_id(&request.id),
            workflow_type: Some(WorkflowType { name: workflow_type.to_owned() }),
            task_queue: Some(TaskQueue { name: task_queue.clone(), ..Default::default() }),
            input: Some(Payloads { payloads: vec![argument] }),
            workflow_execution_timeout: timeout,
            identity: self.identity.to_string(),
            request_id: request.request_id.clone(),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::RejectDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::Fail.into(),
            memo: Some(Memo { fields: [(REQUEST_ID_MEMO.to_owned(), request_id)].into() }),
            header: trace_header(request)?,
            ..Default::default()
        })
    }

    /// The namespace keeps ended workflows for its retention. Half of it is reserved for clock
    /// differences and pauses.
    pub(super) fn may_have_forgotten(&self, request: &StartRequest) -> bool {
        let remembered = self.retention.lock().map(|retention| retention / 2);
        request.first_tried.zip(remembered).is_some_and(|(tried, remembered)| tried > remembered)
    }

    /// Whether `request` started the run that holds the id.
    pub(super) async fn check_ours(
        &self,
        request: &StartRequest,
        started_by: Option<&str>,
    ) -> Result<(), Error> {
        if started_by == Some(&request.request_id) {
            return Ok(());
        }
        let taken = || Error::new(ErrorKind::AlreadyExists, "another execution holds the id");
        let memo = match self.info(&request.id).await {
            Ok(info) => info.memo.unwrap_or_default(),
            // The run no longer exists, so its origin is unknown.
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(taken()),
            Err(error) => return Err(error),
        };
        let ours = to_payload(&request.request_id)?;
        let noted = memo.fields.get(REQUEST_ID_MEMO).map(|noted| &noted.data);
        if noted == Some(&ours.data) { Ok(()) } else { Err(taken()) }
    }
}

/// The trace of the request that starts a run, where the tracing interceptors of Temporal's SDKs look
/// for it.
fn trace_header(request: &StartRequest) -> Result<Option<Header>, Error> {
    let Some(traceparent) = &request.traceparent else { return Ok(None) };
    let context = to_payload(&json!({"traceparent": traceparent}))?;
    Ok(Some(Header { fields: [("_tracer-data".to_owned(), context)].into() }))
}

/// The start request for [`WORKFLOW_TYPE`].
pub(super) fn argument(request: &StartRequest) -> Argument {
    let (timeout, retry) = match &request.definition {
        Workflow::Echo { delay } => (*delay, None),
        Workflow::Http { timeout, retry, .. } => (*timeout, Some(*retry)),
        Workflow::Temporal { .. } => (Duration::ZERO, None),
    };
    Argument {
        workflow: request.workflow.clone(),
        execution: request.id.clone(),
        input: request.input.clone(),
        timeout: timeout.saturating_add(STEP_MARGIN),
        retry,
        traceparent: request.traceparent.clone(),
    }
}
