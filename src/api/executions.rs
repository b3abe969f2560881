//! `/v1/executions`.

mod objects;

use std::time::Duration;

use poem::web::Data;
use poem_openapi::{
    ApiResponse, OpenApi, Tags,
    param::{Header, Path, Query},
};

pub(super) use self::objects::Execution;
use self::objects::{ExecutionList, QueryAnswer, StartExecution, Status, Terminate};
use super::{
    State,
    body::{Body, OptionalBody},
    edge::Caller,
    error::{ApiError, bad_request},
    idempotency::{first_answer, request_key},
    operation::Operation,
    raw::{Answer, AnyJson, Raw, to_json},
    types::cut_page,
};
use crate::{
    config::values::duration,
    model::{
        executions::{self as model, ListFilter, ListPlace},
        json::{Form, Json, canonical},
        time::from_micros,
    },
    services::executions::{NewExecution, Started},
};

/// The route that starts executions, which is part of an idempotency key's scope.
const ROUTE: &str = "POST /v1/executions";

#[derive(Tags)]
pub(super) enum Tag {
    /// Starting, watching and steering executions.
    Executions,
}

#[derive(ApiResponse)]
pub(super) enum StartResponse {
    /// The request is accepted.
    #[oai(status = 202)]
    Accepted(
        Answer<Execution>,
        /// The URL of the execution.
        #[oai(header = "Location")]
        String,
    ),
}

#[derive(ApiResponse)]
pub(super) enum SteerResponse {
    /// The request is accepted.
    #[oai(status = 202)]
    Accepted(Answer<Execution>),
}

#[derive(ApiResponse)]
pub(super) enum SignalResponse {
    /// The backend has accepted the signal.
    #[oai(status = 202)]
    Accepted,
}

pub(super) struct Api(pub(super) State);

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::write("startExecution", &[409, 415, 422, 501, 503, 504]),
    Operation::read("listExecutions", &[503, 504]),
    Operation::read("getExecution", &[404, 503, 504]),
    Operation::write("cancelExecution", &[404, 409, 501, 503, 504]),
    Operation::write("terminateExecution", &[404, 409, 415, 422, 501, 503, 504]),
    Operation::write("signalExecution", &[404, 409, 415, 422, 501, 503, 504]),
    Operation::write("queryExecution", &[404, 415, 422, 501, 503, 504]),
];

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
        // Absent members count as `null`, also in identities that earlier releases stored.
        let identity = |form: Form, out: &mut Vec<u8>| canonical(&to_json(&body.0), form, out);
        let key = request_key(key.0, &caller, ROUTE, identity)?;
        let request = new_execution(body.0)?;
        let render = |execution: &model::Execution| to_json(&Execution::new(execution, false));
        let started = state.executions.start(request, key, render).await.map_err(ApiError::from)?;
        let execution = match started {
            Started::New(execution) => Execution::new(&execution, false),
            Started::Before(answer) => first_answer(&answer).map_err(ApiError::from)?,
        };
        let location = format!("/v1/executions/{}", execution.id);
        Ok(StartResponse::Accepted(Answer(execution), location))
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
        /// The maximum number of items.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<ExecutionList>, poem::Error> {
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
        Ok(Answer(ExecutionList { items, next_cursor }))
    }

    /// Get an execution
    ///
    /// With `wait` the answer is held until the execution ends, so that nobody needs to poll.
    #[oai(path = "/v1/executions/:id", method = "get", operation_id = "getExecution")]
    async fn get(
        &self,
        /// The execution's id.
        id: Path<String>,
        /// Hold the answer until it ends, or so long, such as `30s`.
        wait: Query<Option<String>>,
    ) -> Result<Answer<Execution>, poem::Error> {
        let state = &self.0;
        let wait = wait.0.as_deref().map(|text| read_duration("wait", text)).transpose()?;
        let execution = match wait {
            Some(wait) => state.executions.wait(&id.0, wait).await,
            None => state.executions.get(&id.0).await,
        };
        let execution = execution.map_err(ApiError::from)?;
        Ok(Answer(Execution::new(&execution, state.executions.is_stale(&execution))))
    }

    /// Cancel an execution
    ///
    /// A workflow ends once it acts on the request. An execution that was not started yet ends at
    /// once.
    #[oai(path = "/v1/executions/:id/cancel", method = "post", operation_id = "cancelExecution")]
    async fn cancel(
        &self,
        /// The execution's id.
        id: Path<String>,
    ) -> Result<SteerResponse, ApiError> {
        let state = &self.0;
        let execution = state.executions.cancel(&id.0).await?;
        Ok(SteerResponse::Accepted(Answer(Execution::new(&execution, false))))
    }

    /// Terminate an execution
    ///
    /// Its workflow is not notified.
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
        Ok(SteerResponse::Accepted(Answer(Execution::new(&execution, false))))
    }

    /// Signal an execution
    ///
    /// The workflow decides what it means. 501 if the backend does not support signals.
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
        /// The argument of the signal: any JSON value.
        body: OptionalBody<AnyJson>,
    ) -> Result<SignalResponse, ApiError> {
        let state = &self.0;
        let input = read_value("the body", body.0)?;
        state.executions.signal(&id.0, &name.0, &input).await?;
        Ok(SignalResponse::Accepted)
    }

    /// Query an execution
    ///
    /// The workflow answers. 501 if the backend does not support queries.
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
        /// The argument of the query: any JSON value.
        body: OptionalBody<AnyJson>,
    ) -> Result<Answer<QueryAnswer>, ApiError> {
        let state = &self.0;
        let input = read_value("the body", body.0)?;
        let result = state.executions.query(&id.0, &name.0, &input).await?;
        Ok(Answer(QueryAnswer { result: Raw::new(result) }))
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

/// A value that the client defines; an absent one counts as `null`.
fn read_value(name: &str, given: Option<AnyJson>) -> Result<Json, ApiError> {
    given.map_or_else(|| Ok(Json::null()), |given| given.checked(name))
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
