//! `/v1/dead-letters`.

use poem_openapi::{
    ApiResponse, Enum, Object, OpenApi, Tags,
    param::{Path, Query},
};
use serde::Serialize;

use super::{
    State,
    error::{ApiError, bad_request},
    events::CloudEvent,
    executions::Execution,
    operation::Operation,
    raw::{Answer, Raw},
    types::{DateTime, cut_page},
};
use crate::{
    backends::database::{self, RejectedExecution},
    error::{Error, ErrorKind},
    services::dead_letters::LetterId,
};

/// The prefix of the ids of events.
const EVENT: &str = "event-";
/// The prefix of the ids of executions.
const EXECUTION: &str = "execution-";

#[derive(Tags)]
pub(super) enum Tag {
    /// Accepted work that was permanently refused.
    DeadLetters,
}

/// The destination that refused the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Destination {
    /// Events.
    #[default]
    EventBroker,
    /// Executions.
    ExecutionService,
}

/// Accepted work that was permanently refused.
#[derive(Debug, Object, Serialize)]
struct DeadLetter {
    /// The id of the dead letter.
    id: String,
    /// The destination that refused it.
    destination: Destination,
    /// The event, if this is a readable event.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Raw<CloudEvent>>,
    /// The execution, if this is one. Its status is `failed`.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    execution: Option<Execution>,
    /// The last refusal, or the reason why it cannot be read.
    error: String,
    /// How often it was refused.
    refusals: i32,
    /// When the work was accepted.
    accepted_at: DateTime,
}

/// Dead letters of one destination.
#[derive(Debug, Object, Serialize)]
struct DeadLetterList {
    /// This page.
    items: Vec<DeadLetter>,
    /// The `cursor` of the next page; absent on the last page.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
enum RedriveResponse {
    /// It will be delivered again.
    #[oai(status = 202)]
    Accepted,
}

#[derive(ApiResponse)]
enum DiscardResponse {
    /// The dead letter is removed.
    #[oai(status = 204)]
    Removed,
}

pub(super) struct Api(pub(super) State);

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::read("listDeadLetters", &[503, 504]).with(|features| features.operator_api),
    Operation::operate("redriveDeadLetter", &[404, 503, 504])
        .with(|features| features.operator_api),
    Operation::operate("discardDeadLetter", &[404, 503, 504])
        .with(|features| features.operator_api),
];

#[OpenApi(tag = "Tag::DeadLetters")]
impl Api {
    /// List dead letters
    ///
    /// Events come newest first, executions in the order of their ids.
    #[oai(path = "/v1/dead-letters", method = "get", operation_id = "listDeadLetters")]
    async fn list(
        &self,
        /// What refused them, `event_broker` if not given.
        destination: Query<Option<Destination>>,
        /// The maximum number of items.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<DeadLetterList>, poem::Error> {
        let (limit, cursor) = (limit.0.unwrap_or(50), cursor.0.as_deref());
        let most = i64::from(limit) + 1;
        let letters = &self.0.dead_letters;
        let page = match destination.0.unwrap_or_default() {
            Destination::EventBroker => {
                let before = cursor.map(read_cursor).transpose()?;
                let found = letters.events(before, most).await.map_err(ApiError::from)?;
                page(found, limit, |last| last.seq.to_string(), event_letter)
            }
            Destination::ExecutionService => {
                let found = letters.executions(cursor, most).await.map_err(ApiError::from)?;
                page(found, limit, |last| last.execution.id.clone(), execution_letter)
            }
        };
        Ok(Answer(page))
    }

    /// Redrive a dead letter
    ///
    /// An event comes after later events of its subject. An execution is `accepted` again, as if it
    /// had never been tried.
    #[oai(
        path = "/v1/dead-letters/:id/redrive",
        method = "post",
        operation_id = "redriveDeadLetter"
    )]
    async fn redrive(
        &self,
        /// The dead letter's id.
        id: Path<String>,
    ) -> Result<RedriveResponse, ApiError> {
        self.0.dead_letters.redrive(&read_id(&id.0)?).await?;
        tracing::info!(id = id.0, "a dead letter is handed over again by an operator");
        Ok(RedriveResponse::Accepted)
    }

    /// Discard a dead letter
    ///
    /// An execution stays `failed`.
    #[oai(path = "/v1/dead-letters/:id", method = "delete", operation_id = "discardDeadLetter")]
    async fn discard(
        &self,
        /// The dead letter's id.
        id: Path<String>,
    ) -> Result<DiscardResponse, ApiError> {
        self.0.dead_letters.discard(&read_id(&id.0)?).await?;
        tracing::info!(id = id.0, "a dead letter was removed by an operator");
        Ok(DiscardResponse::Removed)
    }
}

fn page<T>(
    mut found: Vec<T>,
    limit: u32,
    cursor: impl Fn(&T) -> String,
    letter: impl Fn(T) -> DeadLetter,
) -> DeadLetterList {
    let has_more = cut_page(&mut found, limit);
    let next_cursor = found.last().filter(|_| has_more).map(cursor);
    DeadLetterList { items: found.into_iter().map(letter).collect(), next_cursor }
}

fn event_letter(letter: database::DeadLetter) -> DeadLetter {
    DeadLetter {
        id: format!("{EVENT}{}", letter.seq),
        destination: Destination::EventBroker,
        event: letter.event.map(Raw::new),
        execution: None,
        error: letter.error,
        refusals: letter.refusals,
        accepted_at: DateTime(letter.accepted_at),
    }
}

fn execution_letter(letter: RejectedExecution) -> DeadLetter {
    let execution = letter.execution;
    DeadLetter {
        id: format!("{EXECUTION}{}", execution.id),
        destination: Destination::ExecutionService,
        event: None,
        error: execution.error.clone().unwrap_or_default(),
        refusals: letter.refusals,
        accepted_at: DateTime(execution.created_at),
        execution: Some(Execution::new(&execution, false)),
    }
}

fn read_cursor(text: &str) -> Result<i64, poem::Error> {
    text.parse().map_err(|_| bad_request("`cursor` must be the next_cursor of an earlier answer"))
}

/// A malformed id counts as unknown, and is answered as not found.
fn read_id(text: &str) -> Result<LetterId, Error> {
    let event = text.strip_prefix(EVENT).and_then(|seq| seq.parse().ok()).map(LetterId::Event);
    let execution = || text.strip_prefix(EXECUTION).map(|id| LetterId::Execution(id.to_owned()));
    event
        .or_else(execution)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no dead letter {text:?}")))
}
