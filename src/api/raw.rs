//! JSON that is passed on as received, and answers that contain it.

use std::{borrow::Cow, marker::PhantomData};

use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse,
    payload::{Json as Described, Payload},
    registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry},
    types::{Any, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::error::ApiError;
use crate::{
    error::{Error, ErrorKind},
    model::json::{self, Json},
};

/// A JSON value that the specification describes as `T` but that is kept as received, with the
/// members that `T` does not name.
#[derive(Clone, Debug)]
pub(super) struct Raw<T>(pub(super) Json, PhantomData<T>);

/// A type that a client may send as [`Raw`].
pub(super) trait Kept {
    /// True when only an object is valid.
    const IS_OBJECT: bool;
}

impl Kept for Any<Value> {
    const IS_OBJECT: bool = false;
}

/// Any JSON value, kept as received.
pub(super) type AnyJson = Raw<Any<Value>>;

impl<T> Raw<T> {
    pub(super) fn new(value: Json) -> Self {
        Self(value, PhantomData)
    }
}

impl<T: Kept> Raw<T> {
    /// Reads a member that exists, even if it is `null`.
    pub(super) fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Self>, D::Error> {
        Self::deserialize(from).map(Some)
    }
}

impl AnyJson {
    /// The value, unless it is nested too deep for those that it is passed on to. Errors call it
    /// `name`.
    pub(super) fn checked(self, name: &str) -> Result<Json, ApiError> {
        json::check_depth(self.0.text().as_bytes())
            .map_err(|problem| Error::new(ErrorKind::InvalidInput, format!("{name} {problem}")))?;
        Ok(self.0)
    }
}

impl<'de, T: Kept> Deserialize<'de> for Raw<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Json::deserialize(deserializer)?;
        if T::IS_OBJECT && !value.text().starts_with('{') {
            return Err(serde::de::Error::custom("expected an object"));
        }
        Ok(Self::new(value))
    }
}

impl<T> Serialize for Raw<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: Type> Type for Raw<T> {
    const IS_REQUIRED: bool = T::IS_REQUIRED;
    type RawValueType = Json;
    type RawElementValueType = Json;

    fn name() -> Cow<'static, str> {
        T::name()
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn as_raw_value(&self) -> Option<&Json> {
        Some(&self.0)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Json> + 'a> {
        Box::new(std::iter::once(&self.0))
    }
}

/// Required by the framework for every member of an object. It would lose the text, so
/// [`Body`](super::body::Body) and [`Answer`] do not use it.
impl<T: Type> ParseFromJSON for Raw<T> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        Ok(Self::new(value.unwrap_or_default().into()))
    }
}

impl<T: Type> ToJSON for Raw<T> {
    fn to_json(&self) -> Option<Value> {
        serde_json::from_str(self.0.text()).ok()
    }
}

/// A JSON answer, described as `T` and written by serde, so that raw parts stay as they are.
#[derive(Clone, Debug)]
pub(super) struct Answer<T>(pub(super) T);

impl<T: Type> Payload for Answer<T> {
    const CONTENT_TYPE: &'static str = <Described<T> as Payload>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Type + Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let content_type = <Self as Payload>::CONTENT_TYPE;
        Response::builder().content_type(content_type).body(to_json(&self.0))
    }
}

impl<T: Type + Serialize> ApiResponse for Answer<T> {
    fn meta() -> MetaResponses {
        let content_type = <Self as Payload>::CONTENT_TYPE;
        let response = MetaResponse {
            description: "",
            status: Some(200),
            status_range: None,
            content: vec![MetaMediaType { content_type, schema: T::schema_ref() }],
            headers: Vec::new(),
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

/// Serialises an object of the API.
///
/// # Panics
/// Never: text, numbers and JSON have a JSON form.
pub(super) fn to_json(object: &impl Serialize) -> String {
    serde_json::to_string(object).expect("objects of the API serialise")
}
