//! JSON bodies.

use poem::{Request, RequestBody, http::header};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    error::{ContentTypeError, ParseRequestPayloadError},
    payload::{Json, ParsePayload, Payload},
    registry::{MetaMediaType, MetaRequest, MetaSchemaRef, Registry},
    types::Type,
};
use serde::de::DeserializeOwned;

use super::{error::ApiError, explain};
use crate::{
    error::{Error, ErrorKind},
    model::json,
};

/// A JSON body. A refusal names the offending field.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: Type> Payload for Body<T> {
    const CONTENT_TYPE: &'static str = <Json<T> as Payload>::CONTENT_TYPE;

    fn check_content_type(content_type: &str) -> bool {
        Json::<T>::check_content_type(content_type)
    }

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: DeserializeOwned + Type> ParsePayload for Body<T> {
    const IS_REQUIRED: bool = T::IS_REQUIRED;

    async fn from_request(_request: &Request, body: &mut RequestBody) -> poem::Result<Self> {
        let bytes = body.take()?.into_bytes().await?;
        refuse_deep(&bytes)?;
        read(&bytes).map(Self).map_err(|reason| ParseRequestPayloadError { reason }.into())
    }
}

/// Refuses nesting that is deeper than the limit of a value plus the levels that a route may add
/// around it: a batch and an event. The route checks the value itself.
fn refuse_deep(bytes: &[u8]) -> Result<(), ApiError> {
    if json::depth(bytes) <= json::MAX_DEPTH + 2 {
        return Ok(());
    }
    let message = format!("a value is nested deeper than {} levels", json::MAX_DEPTH);
    Err(Error::new(ErrorKind::InvalidInput, message).into())
}

/// Reads an empty body as `null`.
fn read<T: DeserializeOwned + Type>(bytes: &[u8]) -> Result<T, String> {
    let text = if bytes.is_empty() { b"null" } else { bytes };
    // Parts that are kept as text must be readable to their recipients.
    json::check(text).map_err(|error| format!("the body is not JSON: {error}"))?;
    serde_json::from_slice(text).map_err(|error| match bytes {
        [] => "the body is empty".to_owned(),
        text => explain::body::<T>(text).unwrap_or_else(|| error.to_string()),
    })
}

impl<'a, T: DeserializeOwned + Type> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest {
            description: None,
            content: vec![MetaMediaType {
                content_type: <Self as Payload>::CONTENT_TYPE,
                schema: T::schema_ref(),
            }],
            required: T::IS_REQUIRED,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        match request.content_type() {
            Some(content_type) if Self::check_content_type(content_type) => {
                <Self as ParsePayload>::from_request(request, body).await
            }
            Some(other) => {
                Err(ContentTypeError::NotSupported { content_type: other.to_owned() }.into())
            }
            None => Err(ContentTypeError::ExpectContentType.into()),
        }
    }
}

/// A JSON body that may be absent.
#[derive(Debug)]
pub(super) struct OptionalBody<T>(pub(super) Option<T>);

impl<'a, T: DeserializeOwned + Type> ApiExtractor<'a> for OptionalBody<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let meta = <Body<T> as ApiExtractor<'a>>::request_meta()?;
        Some(MetaRequest { required: false, ..meta })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        // A client that sends no body names no content type.
        if request.content_type().is_none() {
            let length = request.header(header::CONTENT_LENGTH);
            if length.is_none_or(|length| length == "0") {
                return Ok(Self(None));
            }
        }
        let Body(value) =
            <Body<T> as ApiExtractor<'a>>::from_request(request, body, options).await?;
        Ok(Self(Some(value)))
    }
}
