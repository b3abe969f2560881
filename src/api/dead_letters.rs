//! `/v1/dead-letters`.

use poem_openapi::{
    ApiResponse, Object, OpenApi, Tags,
    param::{Path, Query},
    payload::Json,
};
use serde_json::json;

use super::{
    State,
    error::{ApiError, bad_request},
    events::CloudEvent,
    types::{DateTime, Raw, cut_page},
};
use crate::{
    backends::database,
    error::{Error, ErrorKind},
};

#[derive(Tags)]
pub(super) enum Tag {
    /// Accepted work that was refused for good.
    DeadLetters,
}

/// An accepted event that the broker refused for good.
#[derive(Debug, Object)]
struct DeadLetter {
    /// Identifies it here.
    id: String,
    /// What refused it.
    destination: String,
    /// The event.
    event: Raw<CloudEvent>,
    /// How the broker refused it last.
    error: String,
    /// How often it was refused.
    refusals: i32,
    /// When it was accepted.
    accepted_at: DateTime,
}

/// Dead letters, newest first.
#[derive(Debug, Object)]
struct DeadLetterList {
    /// This page.
    items: Vec<DeadLetter>,
    /// Give it as `cursor` for the next page; absent on the last one.
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
enum RedriveResponse {
    /// It is handed over again.
    #[oai(status = 202)]
    Accepted,
}

#[derive(ApiResponse)]
enum DiscardResponse {
    /// It is removed.
    #[oai(status = 204)]
    Removed,
}

pub(super) struct Api(pub(super) State);

#[OpenApi(tag = "Tag::DeadLetters")]
impl Api {
    /// List dead letters, newest first
    #[oai(path = "/v1/dead-letters", method = "get", operation_id = "listDeadLetters")]
    async fn list(
        &self,
        /// At most so many.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Json<DeadLetterList>, poem::Error> {
        let limit = limit.0.unwrap_or(50);
        let before = cursor.0.as_deref().map(read_cursor).transpose()?;
        let found = self.0.dead_letters.list(before, i64::from(limit) + 1).await;
        let mut found = found.map_err(ApiError::from)?;
        let has_more = cut_page(&mut found, limit);
        let next_cursor = found.last().filter(|_| has_more).map(|last| last.seq.to_string());
        let items = found.into_iter().map(dead_letter).collect();
        Ok(Json(DeadLetterList { items, next_cursor }))
    }

    /// Hand a dead letter over again
    ///
    /// It comes after later events of its subject.
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
        self.0.dead_letters.redrive(read_id(&id.0)?).await?;
        tracing::info!(id = id.0, "a dead letter is handed over again by an operator");
        Ok(RedriveResponse::Accepted)
    }

    /// Remove a dead letter for good
    #[oai(path = "/v1/dead-letters/:id", method = "delete", operation_id = "discardDeadLetter")]
    async fn discard(
        &self,
        /// The dead letter's id.
        id: Path<String>,
    ) -> Result<DiscardResponse, ApiError> {
        self.0.dead_letters.discard(read_id(&id.0)?).await?;
        tracing::info!(id = id.0, "a dead letter was removed by an operator");
        Ok(DiscardResponse::Removed)
    }
}

fn dead_letter(letter: database::DeadLetter) -> DeadLetter {
    DeadLetter {
        id: letter.seq.to_string(),
        destination: "event_broker".to_owned(),
        event: Raw::new(json!(letter.event)),
        error: letter.error,
        refusals: letter.refusals,
        accepted_at: DateTime(letter.accepted_at),
    }
}

fn read_cursor(text: &str) -> Result<i64, poem::Error> {
    text.parse().map_err(|_| bad_request("`cursor` must be the next_cursor of an earlier answer"))
}

/// An unknown id is not found, whatever its form.
fn read_id(text: &str) -> Result<i64, Error> {
    let unknown = |_| Error::new(ErrorKind::NotFound, format!("there is no dead letter {text:?}"));
    text.parse().map_err(unknown)
}
