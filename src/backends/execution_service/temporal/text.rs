//! Values of workflows and activities that keep their text. The SDK's own converter reads each
//! payload into a tree first, in which numbers lose digits and objects the order of their members.

use serde::{Serialize, de::DeserializeOwned};
use temporalio_common::{
    data_converters::{
        PayloadConversionError, SerializationContext, TemporalDeserializable, TemporalSerializable,
    },
    protos::temporal::api::common::v1::Payload,
};

use super::answers::to_payload;

/// A value that is written to a payload, and read from it, directly.
#[derive(Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<T: Serialize> TemporalSerializable for Text<T> {
    fn to_payload(&self, _: &SerializationContext<'_>) -> Result<Payload, PayloadConversionError> {
        to_payload(&self.0).map_err(|error| PayloadConversionError::EncodingError(error.into()))
    }
}

impl<T: DeserializeOwned> TemporalDeserializable for Text<T> {
    fn from_payload(
        _: &SerializationContext<'_>,
        payload: Payload,
    ) -> Result<Self, PayloadConversionError> {
        let encoding = payload.metadata.get("encoding").map(Vec::as_slice);
        let text: &[u8] = match encoding {
            Some(b"json/plain") => &payload.data,
            // As the SDK writes a result of `null`.
            Some(b"binary/null") => b"null",
            _ => return Err(PayloadConversionError::WrongEncoding),
        };
        let value = serde_json::from_slice(text);
        value.map(Self).map_err(|error| PayloadConversionError::EncodingError(error.into()))
    }
}
