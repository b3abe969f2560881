//! `/v1/events`.

use poem::web::Data;
use poem_openapi::{
    ApiRequest, ApiResponse, Enum, Object, OpenApi, Tags,
    param::{Header, Query},
    payload::Binary,
};
use serde::{Deserialize, Serialize};

use super::{
    State,
    body::Body,
    edge::Caller,
    error::{ApiError, bad_request},
    idempotency::{first_answer, request_key},
    operation::Operation,
    problem::InvalidItem,
    raw::{Answer, AnyJson, Kept, Raw, to_json},
    sse,
    types::DateTime,
};
use crate::{
    error::{Error, ErrorKind},
    model::{
        events::{DEFAULT_SOURCE, Event, Position},
        json::{Form, Json, canonical},
    },
    services::events::{ChosenBy, stream::Filter},
};

/// The route that publishes events, which is part of an idempotency key's scope.
const ROUTE: &str = "POST /v1/events";

#[derive(Tags)]
pub(super) enum Tag {
    /// Publishing and following events.
    Events,
}

/// How an event is delivered to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub(super) enum Delivery {
    /// Accepted durably, delivered as soon as the broker can take it.
    #[default]
    Durable,
    /// Published without being stored; answered once the broker has it.
    Direct,
}

/// A `CloudEvents` 1.0 event in the JSON format. Extension attributes may be added.
#[derive(Debug, Object)]
#[oai(rename = "CloudEvent")]
pub(super) struct CloudEvent {
    /// Always `1.0`.
    specversion: String,
    /// Unique within the source.
    id: String,
    /// The source of the event, a URI reference.
    source: String,
    /// The type of the event, such as `task.created`.
    #[oai(rename = "type")]
    kind: String,
    /// The subject of the event. Events with the same subject keep their order.
    subject: Option<String>,
    /// The time of the event, RFC 3339.
    time: Option<DateTime>,
    /// The media type of `data`.
    datacontenttype: Option<String>,
    /// The schema of `data`.
    dataschema: Option<String>,
    /// The payload.
    data: Option<AnyJson>,
    /// The payload when it is binary.
    data_base64: Option<String>,
}

impl Kept for CloudEvent {
    const IS_OBJECT: bool = true;
}

/// The short form of an event. The service adds id, source and time.
#[derive(Debug, Object, Serialize, Deserialize)]
#[oai(deny_unknown_fields)]
#[serde(deny_unknown_fields)]
pub(super) struct ShortEvent {
    /// The type of the event, such as `task.created`.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    kind: String,
    /// The subject of the event. Events with the same subject keep their order.
    subject: Option<String>,
    /// The payload.
    #[serde(default, deserialize_with = "Raw::present")]
    data: Option<AnyJson>,
}

/// One event, a batch, or the short form, by content type.
#[derive(Debug, ApiRequest)]
pub(super) enum Publish {
    /// A `CloudEvents` event.
    #[oai(content_type = "application/cloudevents+json")]
    One(Body<Raw<CloudEvent>>),
    /// A batch: all of it is accepted, or none.
    #[oai(content_type = "application/cloudevents-batch+json")]
    Batch(Body<Vec<Raw<CloudEvent>>>),
    // Last, because it takes every type that ends in `+json`.
    /// The short form.
    Short(Body<ShortEvent>),
}

impl Publish {
    /// Appends the text that equal requests share. Earlier releases have stored hashes of it.
    fn write_identity(&self, form: Form, out: &mut Vec<u8>) {
        let mut part = |kind: &str, text: &str| {
            out.extend_from_slice(kind.as_bytes());
            canonical(text, form, out);
        };
        match self {
            Self::One(Body(event)) => part("one ", event.0.text()),
            Self::Batch(Body(batch)) => {
                for (place, event) in batch.iter().enumerate() {
                    part(if place == 0 { "batch " } else { " " }, event.0.text());
                }
            }
            // Absent members count as `null`.
            Self::Short(Body(short)) => part("short ", &to_json(short)),
        }
    }

    /// The side that chose the ids.
    fn ids(&self) -> ChosenBy {
        match self {
            Self::One(_) | Self::Batch(_) => ChosenBy::Client,
            Self::Short(_) => ChosenBy::Service,
        }
    }
}

/// The ids of the published events.
#[derive(Debug, Object, Serialize, Deserialize)]
pub(super) struct Published {
    /// The id of the event, if one was sent.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The ids of the events of a batch, in order.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    ids: Option<Vec<String>>,
}

impl Published {
    fn new(mut ids: Vec<String>, is_batch: bool) -> Self {
        if is_batch { Self { id: None, ids: Some(ids) } } else { Self { id: ids.pop(), ids: None } }
    }
}

#[derive(ApiResponse)]
pub(super) enum PublishResponse {
    /// The broker has acknowledged the event (`delivery=direct`).
    #[oai(status = 200)]
    Delivered(Answer<Published>),
    /// The request is accepted.
    #[oai(status = 202)]
    Accepted(Answer<Published>),
}

#[derive(ApiResponse)]
pub(super) enum StreamResponse {
    /// Server-sent events: `data` is an event's `CloudEvents` JSON, `id` resumes after it. An event
    /// named `gap` says that events were missed. Comments keep the connection open.
    #[oai(status = 200, content_type = "text/event-stream")]
    Stream(
        Binary<poem::Body>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
        /// Always `no`, so that nginx does not hold events back.
        #[oai(header = "X-Accel-Buffering")]
        String,
    ),
}

pub(super) struct Api(pub(super) State);

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::write("publishEvents", &[404, 409, 415, 422, 503, 504]),
    Operation::read("streamEvents", &[503, 504]).with(|features| features.event_stream),
];

#[OpenApi(tag = "Tag::Events")]
impl Api {
    /// Publish events
    ///
    /// Takes one `CloudEvent`, a batch, or the short form, by content type. Once it is answered 202 it
    /// is committed to the database, and will be delivered whatever happens to the broker.
    #[oai(path = "/v1/events", method = "post", operation_id = "publishEvents")]
    async fn publish(
        &self,
        caller: Data<&Caller>,
        /// `durable` (the default) or `direct`.
        delivery: Query<Option<Delivery>>,
        /// Makes repetitions of this request harmless: they get the first answer. Only with
        /// `durable`.
        #[oai(name = "Idempotency-Key")]
        key: Header<Option<String>>,
        body: Publish,
    ) -> Result<PublishResponse, poem::Error> {
        let state = &self.0;
        let delivery = delivery.0.unwrap_or_default();
        if delivery == Delivery::Direct && !state.config.features.direct_delivery {
            let message = "direct delivery is switched off";
            return Err(ApiError::from(Error::new(ErrorKind::NotFound, message)).into());
        }
        if delivery == Delivery::Direct && key.0.is_some() {
            return Err(bad_request("`Idempotency-Key` needs `delivery=durable`"));
        }
        let identity = |form: Form, out: &mut Vec<u8>| body.write_identity(form, out);
        let key = request_key(key.0, &caller, ROUTE, identity)?;
        let (is_batch, chosen_by) = (matches!(body, Publish::Batch(_)), body.ids());
        let events = read(body)?;
        let ids: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
        let published = Published::new(ids, is_batch);
        if delivery == Delivery::Direct {
            state.events.publish(events).await.map_err(ApiError::from)?;
            return Ok(PublishResponse::Delivered(Answer(published)));
        }
        let accepted = state.events.accept(events, chosen_by, key, || to_json(&published)).await;
        Ok(PublishResponse::Accepted(Answer(match accepted.map_err(ApiError::from)? {
            Some(answer) => first_answer(&answer).map_err(ApiError::from)?,
            None => published,
        })))
    }

    /// Follow events
    ///
    /// Server-sent events. Without `Last-Event-ID` the stream starts now; with it, after that
    /// event.
    #[oai(path = "/v1/events/stream", method = "get", operation_id = "streamEvents")]
    async fn stream(
        &self,
        /// Only events of this type, or of types that begin so if it ends in `*`.
        #[oai(name = "type")]
        kind: Query<Option<String>>,
        /// Only events of this subject.
        subject: Query<Option<String>>,
        /// The id of the last event that was seen.
        #[oai(name = "Last-Event-ID")]
        last_event_id: Header<Option<String>>,
    ) -> Result<StreamResponse, poem::Error> {
        let state = &self.0;
        let last = match last_event_id.0.as_deref().map(str::trim).filter(|id| !id.is_empty()) {
            None => None,
            Some(id) => Some(
                id.parse::<Position>()
                    .map_err(|message| bad_request(format!("`Last-Event-ID`: {message}")))?,
            ),
        };
        let filter = Filter::new(kind.0, subject.0);
        let mut follower = state.streams.subscribe(filter, last).await.map_err(ApiError::from)?;
        let text = async_stream::stream! {
            yield Ok::<_, std::io::Error>(sse::SUBSCRIBED);
            while let Some(next) = follower.next().await {
                yield Ok(sse::text(&next));
            }
        };
        Ok(StreamResponse::Stream(
            Binary(poem::Body::from_bytes_stream(text)),
            "no-store".to_owned(),
            "no".to_owned(),
        ))
    }
}

/// Reads a client's event. The ids of changes of executions are predictable, and an event stored
/// under one of them would take its place.
fn from_client(raw: &Json) -> Result<Event, String> {
    let event = Event::from_client(raw)?;
    if event.source == DEFAULT_SOURCE && event.id.contains(':') {
        return Err(format!(
            "ids with a colon belong to the service in its source {DEFAULT_SOURCE:?}"
        ));
    }
    Ok(event)
}

fn read(body: Publish) -> Result<Vec<Event>, ApiError> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidInput, message);
    match body {
        Publish::Short(Body(short)) => {
            let data = short.data.map(|data| data.checked("`data`")).transpose()?;
            let event = Event::new(short.kind, short.subject, data.as_ref());
            event.check().map_err(invalid)?;
            Ok(vec![event])
        }
        Publish::One(Body(raw)) => Ok(vec![from_client(&raw.0).map_err(invalid)?]),
        Publish::Batch(Body(batch)) => {
            let mut events = Vec::with_capacity(batch.len());
            let mut wrong = Vec::new();
            for (index, raw) in (0..).zip(batch) {
                match from_client(&raw.0) {
                    Ok(event) => events.push(event),
                    Err(detail) => wrong.push(InvalidItem { index, detail }),
                }
            }
            if wrong.is_empty() { Ok(events) } else { Err(ApiError::invalid_items(wrong)) }
        }
    }
}
