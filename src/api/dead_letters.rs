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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
enum Destination {
    /// Events.
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

/// Dead letters.
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
    /// First events, newest first, then executions in the order of their ids.
    #[oai(path = "/v1/dead-letters", method = "get", operation_id = "listDeadLetters")]
    async fn list(
        &self,
        /// What refused them; both if not given.
        destination: Query<Option<Destination>>,
        /// The maximum number of items.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<DeadLetterList>, poem::Error> {
        let limit = limit.0.unwrap_or(50);
        let after = cursor.0.as_deref().map(read_cursor).transpose()?;
        let found = self.page(destination.0, after, i64::from(limit) + 1).await;
        let mut items = found.map_err(ApiError::from)?;
        let has_more = cut_page(&mut items, limit);
        let next_cursor = items.last().filter(|_| has_more).map(|last| last.id.clone());
        Ok(Answer(DeadLetterList { items, next_cursor }))
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

impl Api {
    /// Up to `most` letters after another one: events, then executions.
    async fn page(
        &self,
        destination: Option<Destination>,
        after: Option<LetterId>,
        most: i64,
    ) -> Result<Vec<DeadLetter>, Error> {
        let letters = &self.0.dead_letters;
        let wanted = |of| destination.is_none_or(|destination| destination == of);
        let mut found = Vec::new();
        let (before, after) = match after {
            None => (Some(None), None),
            Some(LetterId::Event(seq)) => (Some(Some(seq)), None),
            // Executions come after all events.
            Some(LetterId::Execution(id)) => (None, Some(id)),
        };
        if let Some(before) = before.filter(|_| wanted(Destination::EventBroker)) {
            let events = letters.events(before, most).await?;
            found.extend(events.into_iter().map(event_letter));
        }
        let room = most - i64::try_from(found.len()).unwrap_or(most);
        if room > 0 && wanted(Destination::ExecutionService) {
            let executions = letters.executions(after.as_deref(), room).await?;
            found.extend(executions.into_iter().map(execution_letter));
        }
        Ok(found)
    }
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

fn read_cursor(text: &str) -> Result<LetterId, poem::Error> {
    read_id(text).map_err(|_| bad_request("`cursor` must be the next_cursor of an earlier answer"))
}

/// A malformed id counts as unknown, and is answered as not found.
fn read_id(text: &str) -> Result<LetterId, Error> {
    let event = text.strip_prefix(EVENT).and_then(|seq| seq.parse().ok()).map(LetterId::Event);
    let execution = || text.strip_prefix(EXECUTION).map(|id| LetterId::Execution(id.to_owned()));
    event
        .or_else(execution)
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no dead letter {text:?}")))
}
