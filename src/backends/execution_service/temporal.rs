//! Executions on a Temporal server. A workflow of kind `temporal` runs on external workers; `echo`
//! and `http` run on `agentarea-api worker`.
//!
//! Every call is one raw RPC: the SDK's retries are off, because the guard has its own, and the
//! SDK's `start_workflow` would make a new request id each time.

mod answers;
mod connect;
mod list;
mod start;
#[cfg(feature = "worker")]
mod text;
#[cfg(feature = "worker")]
pub mod worker;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use temporalio_client::{
    Connection, RetryOptions,
    grpc::WorkflowService,
    tonic::{Code, Request, Response, Status as Answer},
};
use temporalio_common::protos::{
    grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus},
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::{HistoryEventFilterType, WorkflowExecutionStatus},
        history::v1::history_event::Attributes,
        query::v1::WorkflowQuery,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest,
            QueryWorkflowRequest, RequestCancelWorkflowExecutionRequest,
            SignalWorkflowExecutionRequest, TerminateWorkflowExecutionRequest,
        },
    },
};
use tokio::time::timeout;

use self::{
    answers::{body, ending, from_payloads, start_request_id, timestamp, to_arguments, translate},
    connect::{ApiKey, Config, Key, Limits, RPC_TIMEOUT, connect},
    list::is_first,
};
#[cfg(feature = "worker")]
use self::{connect::describe_namespace, start::Argument};
use super::{Description, ExecutionService, FAMILY, Page, PageToken, Started, TEMPORAL_VARIABLES};
use crate::{
    backends::login::Login,
    config::{BackendDescriptor, Section, Table},
    connection::{Backend, BuildContext, Factory as BackendFactory},
    error::{Error, ErrorKind},
    model::{
        executions::{ListedEnd, Outcome, StartRequest, Status},
        ids,
        json::Json,
        time::Timestamp,
    },
};

/// Deadline of one long poll. The server ends a poll earlier by itself; with little time left it
/// would answer at once, and the loop would spin.
const POLL_TIMEOUT: Duration = Duration::from_secs(70);

const HEALTH_SERVICE: &str = "temporal.api.workflowservice.v1.WorkflowService";

pub(super) struct Factory;

#[async_trait]
impl BackendFactory<dyn ExecutionService> for Factory {
    fn descriptor(&self) -> BackendDescriptor {
        BackendDescriptor {
            family: FAMILY,
            name: "temporal",
            variables: &TEMPORAL_VARIABLES,
            shared: true,
            example: "TEMPORAL_ADDRESS=temporal:7233",
            table: Table::of::<Config>(),
        }
    }

    async fn build(
        &self,
        section: &Section,
        context: &BuildContext,
    ) -> Result<Arc<dyn ExecutionService>, Error> {
        let config: Config = section.read()?;
        let limits = Limits::of(&context.pool);
        let (login, identity) = (config.login()?, Arc::clone(&context.instance));
        let retries = RetryOptions::no_retries();
        let connection = connect(&config, &login, &identity, &limits, retries).await?;
        let retention = Mutex::default();
        Ok(Arc::new(Temporal { connection, login, config, identity, retention }))
    }
}

/// A connection to a Temporal server. It is one HTTP/2 connection, which carries any number of
/// calls and reconnects by itself.
struct Temporal {
    connection: Connection,
    login: Login<ApiKey>,
    config: Config,
    identity: Arc<str>,
    /// The retention of the namespace for ended workflows, as of the last probe.
    retention: Mutex<Option<Duration>>,
}

impl std::fmt::Debug for Temporal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Temporal").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Temporal {
    /// Makes one call, and repeats it once if the server refuses our key and the key's file has
    /// changed.
    async fn ask<M, T, F, Fut>(&self, message: M, call: F) -> Result<Response<T>, Answer>
    where
        M: Clone,
        F: Fn(Box<dyn WorkflowService>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Answer>>,
    {
        self.ask_within(RPC_TIMEOUT, message, call).await
    }

    async fn ask_within<M, T, F, Fut>(
        &self,
        limit: Duration,
        message: M,
        call: F,
    ) -> Result<Response<T>, Answer>
    where
        M: Clone,
        F: Fn(Box<dyn WorkflowService>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Answer>>,
    {
        let key = self.login.current();
        // Inputs can be large, so they are kept only where a second attempt is possible.
        let again = self.config.api_key.is_some().then(|| message.clone());
        let rpc = || self.connection.workflow_service();
        let answer = call(rpc(), key.request(message, limit)).await;
        let (Err(refused), Some(message)) = (&answer, again) else { return answer };
        if refused.code() != Code::Unauthenticated {
            return answer;
        }
        match self.login.renew(&key, translate(refused)) {
            Ok(key) => call(rpc(), key.request(message, limit)).await,
            Err(_) => answer,
        }
    }

    async fn probe_with(&self, key: &Key) -> Result<(), Error> {
        let message = HealthCheckRequest { service: HEALTH_SERVICE.to_owned() };
        let request = key.request(message, RPC_TIMEOUT);
        match self.connection.health_service().check(request).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {}
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "Temporal says that it is not serving",
                ));
            }
            // A proxy may not forward the health service.
            Err(answer) if answer.code() == Code::Unimplemented => {}
            Err(answer) => return Err(translate(&answer)),
        }
        let namespace = &self.config.namespace;
        let retention = connect::describe_namespace(&self.connection, key, namespace).await?;
        *self.retention.lock() = retention;
        Ok(())
    }

    fn workflow_id(&self, id: &str) -> String {
        format!("{}{id}", self.config.workflow_id_prefix)
    }

    /// The newest run of an execution, the last of a chain of continued runs.
    fn newest_run(&self, id: &str) -> WorkflowExecution {
        WorkflowExecution { workflow_id: self.workflow_id(id), run_id: String::new() }
    }

    async fn info(&self, id: &str) -> Result<WorkflowExecutionInfo, Error> {
        let message = DescribeWorkflowExecutionRequest {
            namespace: self.config.namespace.clone(),
            execution: Some(self.newest_run(id)),
        };
        let answer = self
            .ask(message, async |mut rpc, request| rpc.describe_workflow_execution(request).await)
            .await;
        body(answer)?.workflow_execution_info.ok_or_else(|| {
            let message = "Temporal describes an execution without its state";
            Error::new(ErrorKind::Incompatible, message)
        })
    }

    fn history(&self, run: Option<WorkflowExecution>) -> GetWorkflowExecutionHistoryRequest {
        GetWorkflowExecutionHistoryRequest {
            namespace: self.config.namespace.clone(),
            execution: run,
            history_event_filter_type: HistoryEventFilterType::CloseEvent.into(),
            skip_archival: true,
            ..Default::default()
        }
    }

    /// Completes when the execution has ended, including all runs that continue it.
    async fn ended(&self, id: &str) -> Result<(), Error> {
        let mut page = Vec::new();
        loop {
            let poll = GetWorkflowExecutionHistoryRequest {
                wait_new_event: true,
                next_page_token: page,
                ..self.history(Some(self.newest_run(id)))
            };
            let polled = self.ask_within(POLL_TIMEOUT, poll, async |mut rpc, request| {
                rpc.get_workflow_execution_history(request).await
            });
            let answer = body(polled.await)?;
            let event = answer.history.and_then(|mut history| history.events.pop());
            page = match event.and_then(|event| event.attributes) {
                // Without a page token, the next poll finds the run that continues this one.
                Some(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(_)) => Vec::new(),
                Some(_) => return Ok(()),
                // The server ends long polls by itself.
                None => answer.next_page_token,
            };
        }
    }

    /// Where an execution stands, by its newest run.
    async fn description(&self, id: &str) -> Result<Description, Error> {
        let info = self.info(id).await?;
        let status = status(info.status())?;
        let started_at = info.start_time.as_ref().map(|at| timestamp(at.seconds, at.nanos));
        let mut outcome =
            Outcome { status, result: None, error: None, started_at, finished_at: None };
        let mut ran_for = None;
        let run = info.execution.clone().unwrap_or_else(|| self.newest_run(id));
        if status != Status::Running {
            outcome.finished_at =
                info.close_time.as_ref().map(|at| timestamp(at.seconds, at.nanos));
            ran_for = started_at.zip(outcome.finished_at).filter(|_| is_first(&info, &run));
            (outcome.result, outcome.error) = ending(self.closing_event(run).await?);
        }
        let ran_for = ran_for.map(|(started, ended)| ended.duration_since(started));
        Ok(Description { id: id.to_owned(), outcome, ran_for })
    }

    async fn closing_event(&self, run: WorkflowExecution) -> Result<Option<Attributes>, Error> {
        let message = self.history(Some(run));
        let answer = self
            .ask(message, async |mut rpc, request| {
                rpc.get_workflow_execution_history(request).await
            })
            .await;
        let history = body(answer)?.history;
        let closed_by = history.and_then(|mut history| history.events.pop());
        Ok(closed_by.and_then(|event| event.attributes))
    }
}

/// Converts Temporal's status to ours.
fn status(status: WorkflowExecutionStatus) -> Result<Status, Error> {
    Ok(match status {
        // A continued run has ended, but its execution goes on.
        WorkflowExecutionStatus::Running
        | WorkflowExecutionStatus::Paused
        | WorkflowExecutionStatus::ContinuedAsNew => Status::Running,
        WorkflowExecutionStatus::Completed => Status::Completed,
        WorkflowExecutionStatus::Failed => Status::Failed,
        WorkflowExecutionStatus::Canceled => Status::Cancelled,
        WorkflowExecutionStatus::Terminated => Status::Terminated,
        WorkflowExecutionStatus::TimedOut => Status::TimedOut,
        WorkflowExecutionStatus::Unspecified => {
            let message = "Temporal reports a status that this program does not know";
            return Err(Error::new(ErrorKind::Incompatible, message));
        }
    })
}

#[async_trait]
impl Backend for Temporal {
    async fn probe(&self) -> Result<(), Error> {
        self.login.connect(async |key| self.probe_with(&key).await).await
    }

    async fn close(&self) {}
}

#[async_trait]
impl ExecutionService for Temporal {
    async fn start(&self, start: &StartRequest) -> Result<Started, Error> {
        if self.may_have_forgotten(start) {
            return Ok(Started::TooLate);
        }
        let message = self.start_message(start)?;
        match self
            .ask(message, async |mut rpc, request| rpc.start_workflow_execution(request).await)
            .await
        {
            Ok(_) => Ok(Started::Started),
            Err(answer) if answer.code() == Code::AlreadyExists => self
                .check_ours(start, start_request_id(&answer).as_deref())
                .await
                .map(|()| Started::Started),
            Err(answer) => Err(translate(&answer)),
        }
    }

    async fn describe(&self, id: &str) -> Result<Description, Error> {
        self.description(id).await
    }

    async fn ended_since(
        &self,
        since: Timestamp,
        page: Option<&PageToken>,
    ) -> Result<Page<ListedEnd>, Error> {
        self.list_ended(since, page).await
    }

    async fn running(&self, page: Option<&PageToken>) -> Result<Page<String>, Error> {
        self.list_running(page).await
    }

    async fn outcomes(&self, ended: &[ListedEnd]) -> Result<Vec<Description>, Error> {
        self.outcomes_of(ended).await
    }

    async fn until_ended(&self, id: &str, wait: Duration) -> Result<(), Error> {
        // The poll's own deadline would not work, because with little time left the server answers
        // at once.
        timeout(wait, self.ended(id)).await.unwrap_or(Ok(()))
    }

    async fn signal(&self, id: &str, name: &str, input: &Json) -> Result<(), Error> {
        let message = SignalWorkflowExecutionRequest {
            namespace: self.config.namespace.clone(),
            workflow_execution: Some(self.newest_run(id)),
            signal_name: name.to_owned(),
            input: to_arguments(input)?,
            identity: self.identity.to_string(),
            request_id: ids::new_id(),
            ..Default::default()
        };
        let answer = self
            .ask(message, async |mut rpc, request| rpc.signal_workflow_execution(request).await)
            .await;
        body(answer).map(drop)
    }

    async fn query(&self, id: &str, name: &str, input: &Json) -> Result<Json, Error> {
        let message = QueryWorkflowRequest {
            namespace: self.config.namespace.clone(),
            execution: Some(self.newest_run(id)),
            query: Some(WorkflowQuery {
                query_type: name.to_owned(),
                query_args: to_arguments(input)?,
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer =
            self.ask(message, async |mut rpc, request| rpc.query_workflow(request).await).await;
        from_payloads(body(answer)?.query_result)
            .map_err(|message| Error::new(ErrorKind::Unsupported, message))
    }

    async fn cancel(&self, id: &str) -> Result<(), Error> {
        // The server accepts the request even when there is nothing left to cancel.
        if status(self.info(id).await?.status())? != Status::Running {
            return Err(Error::new(ErrorKind::NotFound, "the execution has ended"));
        }
        let message = RequestCancelWorkflowExecutionRequest {
            namespace: self.config.namespace.clone(),
            workflow_execution: Some(self.newest_run(id)),
            identity: self.identity.to_string(),
            request_id: ids::new_id(),
            ..Default::default()
        };
        match self
            .ask(message, async |mut rpc, request| {
                rpc.request_cancel_workflow_execution(request).await
            })
            .await
        {
            Ok(_) => Ok(()),
            // The cancellation was requested before.
            Err(answer) if answer.code() == Code::AlreadyExists => Ok(()),
            Err(answer) => Err(translate(&answer)),
        }
    }

    async fn terminate(&self, id: &str, reason: &str) -> Result<(), Error> {
        let message = TerminateWorkflowExecutionRequest {
            namespace: self.config.namespace.clone(),
            workflow_execution: Some(self.newest_run(id)),
            reason: reason.to_owned(),
            identity: self.identity.to_string(),
            ..Default::default()
        };
        let answer = self
            .ask(message, async |mut rpc, request| rpc.terminate_workflow_execution(request).await)
            .await;
        body(answer).map(drop)
    }
}

#[cfg(test)]
mod tests;
