//! `/v1/executions`.

use std::time::Duration;

use poem::web::Data;
use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi, Tags,
    param::{Header, Path, Query},
    payload::Json,
    types::{Any, ToJSON},
};
use serde_json::Value;

use super::{
    State,
    body::{Body, OptionalBody},
    edge::Caller,
    error::{ApiError, bad_request},
    idempotency::{first_answer, request_key},
    types::{DateTime, cut_page},
};
use crate::{
    config::values::duration,
    error::{Error, ErrorKind},
    model::{
        executions::{self as model, ListFilter, ListPlace},
        json,
        time::from_micros,
    },
    services::executions::{NewExecution, Started},
};

/// Where executions are started.
const ROUTE: &str = "POST /v1/executions";

#[derive(Tags)]
pub(super) enum Tag {
    /// Starting, watching and steering executions.
    Executions,
}

/// Where an execution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum)]
#[oai(rename = "ExecutionStatus", rename_all = "snake_case")]
pub(super) enum Status {
    /// Stored, not yet acknowledged by the backend.
    Accepted,
    /// Acknowledged by the backend.
    Running,
    /// Ended with a result.
    Completed,
    /// Ended with an error.
    Failed,
    /// Ended because its cancellation was asked for.
    Cancelled,
    /// Ended by force.
    Terminated,
    /// Ended because its time was up.
    TimedOut,
}

impl From<model::Status> for Status {
    fn from(status: model::Status) -> Self {
        match status {
            model::Status::Accepted => Self::Accepted,
            model::Status::Running => Self::Running,
            model::Status::Completed => Self::Completed,
            model::Status::Failed => Self::Failed,
            model::Status::Cancelled => Self::Cancelled,
            model::Status::Terminated => Self::Terminated,
            model::Status::TimedOut => Self::TimedOut,
        }
    }
}

impl From<Status> for model::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Accepted => Self::Accepted,
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Terminated => Self::Terminated,
            Status::TimedOut => Self::TimedOut,
        }
    }
}

/// One run of a workflow.
#[derive(Clone, Debug, Object)]
pub(super) struct Execution {
    /// Its id.
    id: String,
    /// The workflow's name.
    workflow: String,
    /// Where it stands.
    status: Status,
    /// What it was given.
    input: Any<Value>,
    /// What it gave, when completed.
    #[oai(skip_serializing_if_is_none)]
    result: Option<Any<Value>>,
    /// Why it ended otherwise.
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
    /// The backend has not confirmed the status lately.
    #[oai(skip_serializing_if_is_none)]
    stale: Option<bool>,
    /// When it was accepted.
    created_at: DateTime,
    /// When the backend acknowledged it.
    #[oai(skip_serializing_if_is_none)]
    started_at: Option<DateTime>,
    /// When it ended.
    #[oai(skip_serializing_if_is_none)]
    finished_at: Option<DateTime>,
}

impl Execution {
    pub(super) fn new(execution: &model::Execution, stale: bool) -> Self {
        Self {
            id: execution.id.clone(),
            workflow: execution.workflow.clone(),
            status: execution.status.into(),
            input: Any(execution.input.clone()),
            result: execution.result.clone().map(Any),
            error: execution.error.clone(),
            stale: stale.then_some(true),
            created_at: DateTime(execution.created_at),
            started_at: execution.started_at.map(DateTime),
            finished_at: execution.finished_at.map(DateTime),
        }
    }
}

/// Executions, newest first.
#[derive(Debug, Object)]
pub(super) struct ExecutionList {
    /// This page.
    items: Vec<Execution>,
    /// Give it as `cursor` for the next page; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// What is to be executed.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
pub(super) struct StartExecution {
    /// The workflow's name, one of the configured.
    workflow: String,
    /// What it is given; any JSON.
    input: Option<Any<Value>>,
    /// An id of your own; a new one is made if absent.
    id: Option<String>,
    /// Time it may take in all, such as `30s`.
    timeout: Option<String>,
}

/// Why an execution is ended by force.
#[derive(Debug, Default, Object)]
#[oai(deny_unknown_fields)]
pub(super) struct Terminate {
    /// For people who look at it later.
    reason: Option<String>,
}

/// The answer to a query.
#[derive(Debug, Object)]
pub(super) struct QueryAnswer {
    /// What the workflow answered.
    result: Any<Value>,
}

#[derive(ApiResponse)]
pub(super) enum StartResponse {
    /// It is accepted.
    #[oai(status = 202)]
    Accepted(
        Json<Execution>,
        /// Where to look at it.
        #[oai(header = "Location")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(super) enum SteerResponse {
    /// It is under way.
    #[oai(status = 202)]
    Accepted(Json<Execution>),
}

#[derive(ApiResponse)]
pub(super) enum SignalResponse {
    /// The backend has the signal.
    #[oai(status = 202)]
    Accepted,
}

pub(super) struct Api(pub(super) State);

#[OpenApi(tag = "Tag::Executions")]
impl Api {
    /// Start an execution
    ///
    /// Once it is answered 202 it is committed to the database, and starts once, whatever happens to
    /// the backend meanwhile.
    #[oai(path = "/v1/executions", method = "post", operation_id = "startExecution")]
    async fn start(
        &self,
        caller: Data<&Caller>,
        /// Makes repetitions of this request harmless: they get the first answer.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: Body<StartExecution>,
    ) -> Result<StartResponse, poem::Error> {
        let state = &self.0;
        // The parsed body: spaces and the order of members make no other request.
        let key = request_key(key.0, &caller, ROUTE, &body.0.to_json_string())?;
        let request = new_execution(body.0)?;
        let render =
            |execution: &model::Execution| Execution::new(execution, false).to_json_string();
        let started = state.executions.start(request, key, render).await.map_err(ApiError::from)?;
        let execution = match started {
            Started::New(execution) => Execution::new(&execution, false),
            Started::Before(answer) => first_answer(&answer).map_err(ApiError::from)?,
        };
        let location = format!("/v1/executions/{}", execution.id);
        Ok(StartResponse::Accepted(Json(execution), location))
    }

    /// List executions
    ///
    /// Newest first, page by page.
    #[oai(path = "/v1/executions", method = "get", operation_id = "listExecutions")]
    async fn list(
        &self,
        /// Only of this status.
        status: Query<Option<Status>>,
        /// Only of this workflow.
        workflow: Query<Option<String>>,
        /// At most so many.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Json<ExecutionList>, poem::Error> {
        let state = &self.0;
        let limit = limit.0.unwrap_or(50);
        let filter = ListFilter {
            status: status.0.map(Into::into),
            workflow: workflow.0,
            before: cursor.0.as_deref().map(read_cursor).transpose()?,
            limit: i64::from(limit) + 1,
        };
        let mut found = state.executions.list(&filter).await.map_err(ApiError::from)?;
        let has_more = cut_page(&mut found, limit);
        let next_cursor = found.last().filter(|_| has_more).map(write_cursor);
        let items = found
            .iter()
            .map(|execution| Execution::new(execution, state.executions.is_stale(execution)))
            .collect();
        Ok(Json(ExecutionList { items, next_cursor }))
    }

    /// Look at an execution
    ///
    /// With `wait` the answer is held until the execution ends, so that nobody needs to poll.
    #[oai(path = "/v1/executions/:id", method = "get", operation_id = "getExecution")]
    async fn get(
        &self,
        /// The execution's id.
        id: Path<String>,
        /// Hold the answer until it ends, or so long, such as `30s`.
        wait: Query<Option<String>>,
    ) -> Result<Json<Execution>, poem::Error> {
        let state = &self.0;
        let wait = wait.0.as_deref().map(|text| read_duration("wait", text)).transpose()?;
        let execution = match wait {
            Some(wait) => state.executions.wait(&id.0, wait).await,
            None => state.executions.get(&id.0).await,
        };
        let execution = execution.map_err(ApiError::from)?;
        Ok(Json(Execution::new(&execution, state.executions.is_stale(&execution))))
    }

    /// Ask an execution to end
    ///
    /// It ends when its workflow heeds the wish; one that was not handed over yet ends at once.
    #[oai(path = "/v1/executions/:id/cancel", method = "post", operation_id = "cancelExecution")]
    async fn cancel(
        &self,
        /// The execution's id.
        id: Path<String>,
    ) -> Result<SteerResponse, ApiError> {
        let state = &self.0;
        let execution = state.executions.cancel(&id.0).await?;
        Ok(SteerResponse::Accepted(Json(Execution::new(&execution, false))))
    }

    /// End an execution by force
    ///
    /// Its workflow is not asked.
    #[oai(
        path = "/v1/executions/:id/terminate",
        method = "post",
        operation_id = "terminateExecution"
    )]
    async fn terminate(
        &self,
        /// The execution's id.
        id: Path<String>,
        body: OptionalBody<Terminate>,
    ) -> Result<SteerResponse, ApiError> {
        let state = &self.0;
        let reason = body.0.and_then(|body| body.reason);
        let reason = reason.unwrap_or_else(|| "terminated on request".to_owned());
        let execution = state.executions.terminate(&id.0, &reason).await?;
        Ok(SteerResponse::Accepted(Json(Execution::new(&execution, false))))
    }

    /// Send a signal to an execution
    ///
    /// What it means is up to the workflow. 501 where the backend has no signals.
    #[oai(
        path = "/v1/executions/:id/signals/:name",
        method = "post",
        operation_id = "signalExecution"
    )]
    async fn signal(
        &self,
        /// The execution's id.
        id: Path<String>,
        /// The signal's name.
        name: Path<String>,
        /// What the signal carries; any JSON.
        body: OptionalBody<Any<Value>>,
    ) -> Result<SignalResponse, ApiError> {
        let state = &self.0;
        let input = read_value("the body", body.0)?;
        state.executions.signal(&id.0, &name.0, &input).await?;
        Ok(SignalResponse::Accepted)
    }

    /// Ask a question of an execution
    ///
    /// Its workflow answers. 501 where the backend has no queries.
    #[oai(
        path = "/v1/executions/:id/queries/:name",
        method = "post",
        operation_id = "queryExecution"
    )]
    async fn query(
        &self,
        /// The execution's id.
        id: Path<String>,
        /// The query's name.
        name: Path<String>,
        /// What the query is given; any JSON.
        body: OptionalBody<Any<Value>>,
    ) -> Result<Json<QueryAnswer>, ApiError> {
        let state = &self.0;
        let input = read_value("the body", body.0)?;
        let result = state.executions.query(&id.0, &name.0, &input).await?;
        Ok(Json(QueryAnswer { result: Any(result) }))
    }
}

fn new_execution(body: StartExecution) -> Result<NewExecution, poem::Error> {
    let timeout = body.timeout.as_deref().map(|text| read_duration("timeout", text)).transpose()?;
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(bad_request("`timeout` must be longer than nothing"));
    }
    Ok(NewExecution {
        workflow: body.workflow,
        input: read_value("input", body.input)?,
        id: body.id,
        timeout,
    })
}

/// A value of the client's own; none stands for `null`.
fn read_value(name: &str, given: Option<Any<Value>>) -> Result<Value, ApiError> {
    let value = given.map_or(Value::Null, |given| given.0);
    json::check_depth(&value)
        .map_err(|problem| Error::new(ErrorKind::InvalidInput, format!("{name} {problem}")))?;
    Ok(value)
}

fn read_duration(name: &str, text: &str) -> Result<Duration, poem::Error> {
    duration::parse(text).map_err(|message| bad_request(format!("`{name}`: {message}")))
}

fn write_cursor(execution: &model::Execution) -> String {
    format!("{:x}.{}", execution.created_at.as_microsecond(), execution.id)
}

fn read_cursor(text: &str) -> Result<ListPlace, poem::Error> {
    text.split_once('.')
        .and_then(|(micros, id)| {
            let created_at = from_micros(i64::from_str_radix(micros, 16).ok()?);
            (!id.is_empty()).then(|| ListPlace { created_at, id: id.to_owned() })
        })
        .ok_or_else(|| bad_request("`cursor` must be the next_cursor of an earlier answer"))
}
