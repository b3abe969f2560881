//! JSON that is kept as the text that was sent.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use super::{check, check_depth};

/// A JSON value as the text that was sent: members in their order, numbers with all their digits.
/// Copies share the text.
#[derive(Clone, Debug)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// The value `null`.
    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }

    /// Reads a value from a client or a service, nested at most [`super::MAX_DEPTH`] levels deep.
    ///
    /// # Errors
    /// Returns a message that continues "the value …".
    pub fn read(text: &[u8]) -> Result<Self, String> {
        check_depth(text)?;
        let not_json = |error| format!("is not JSON: {error}");
        check(text).map_err(not_json)?;
        serde_json::from_slice(text).map_err(not_json)
    }

    /// Reads a stored value.
    ///
    /// # Errors
    /// States the place at which it is not JSON that every reader can read.
    pub fn stored(text: String) -> serde_json::Result<Self> {
        check(text.as_bytes())?;
        RawValue::from_string(text).map(|text| Self(text.into()))
    }

    /// Converts any value that serialises.
    ///
    /// # Errors
    /// When it has no JSON form, such as a map whose keys are not text.
    pub fn of(value: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::value::to_raw_value(value).map(|text| Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// True when it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.text() == "null"
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::null()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Json {}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Reads a part of a document that was checked as a whole.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: Box<RawValue> = Deserialize::deserialize(deserializer)?;
        Ok(Self(text.into()))
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        let text = RawValue::from_string(value.to_string());
        text.map_or_else(|_never| Self::null(), |text| Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_as_it_was_sent() {
        for text in [r#"{"b": 1.00, "a": [1e2, 12345678901234567890123]}"#, "null", r#""\u00e9""#] {
            assert_eq!(Json::read(format!(" {text}\n").as_bytes()).unwrap().text(), text);
            assert_eq!(Json::stored(text.to_owned()).unwrap().text(), text);
        }
        assert_eq!(Json::read(b"{").unwrap_err().split(':').next(), Some("is not JSON"));
    }

    #[test]
    fn what_is_sent_may_be_nested_a_hundred_deep() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(Json::read(nested(super::super::MAX_DEPTH).as_bytes()).is_ok());
        let error = Json::read(nested(101).as_bytes()).unwrap_err();
        assert_eq!(error, "is nested deeper than 100 levels");
    }
}
