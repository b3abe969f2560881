//! Types of single values: durations, sizes, secrets.

use std::{fmt, path::PathBuf};

use figment::value::{Tag, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::given::given;

/// Durations written `500ms`, `30s`, `5m`; for `#[serde(with)]` and `#[schemars(schema_with)]`.
pub mod duration {
    use super::{
        Deserialize, Deserializer, Schema, SchemaGenerator, Serializer, given, json_schema,
    };
    use std::time::Duration;

    /// Reads a duration.
    ///
    /// # Errors
    /// When `text` is not a duration; the message shows the expected form.
    pub fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|_| {
            format!("{} is not a duration such as \"500ms\", \"30s\" or \"5m\"", given(text))
        })
    }

    pub(crate) fn serialize<S: Serializer>(
        value: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }

    pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "duration"})
    }
}

/// The same for a duration that may be absent.
pub mod optional_duration {
    use super::{
        Deserialize, Deserializer, Schema, SchemaGenerator, Serializer, duration, json_schema,
    };
    use std::time::Duration;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| duration::parse(&text).map_err(serde::de::Error::custom))
            .transpose()
    }

    pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "null"], "format": "duration"})
    }
}

/// A number of bytes written `64KiB`, `1MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

impl Size {
    /// Reads a size.
    pub(in crate::config) fn parse(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>()
            .ok()
            .and_then(|size| usize::try_from(size.as_u64()).ok())
            .map(Self)
            .ok_or_else(|| format!("{} is not a size such as \"64KiB\" or \"1MiB\"", given(text)))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "size"})
    }
}

/// A value that is never printed: a password, a key, a URL that may hold one.
///
/// Every secret `x` can be given as `x_file`, the path of a file that holds it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret {
    value: String,
    file: Option<PathBuf>,
}

impl Secret {
    /// The value itself; for drivers, never for text that leaves the program.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// The file it came from.
    #[must_use]
    pub fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }

    /// The current content of its file; `None` if it is unchanged, or if the secret came from no
    /// file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn refreshed(&self) -> std::io::Result<Option<Self>> {
        let Some(file) = &self.file else { return Ok(None) };
        let value = super::read_secret(file)?;
        // A program that writes a file in place leaves it empty for a moment.
        let changed = !value.is_empty() && value != self.value;
        Ok(changed.then(|| Self { value, file: Some(file.clone()) }))
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self { value: value.to_owned(), file: None }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

// Only compiled defaults are ever serialised, and no real secret is one of them.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.value)
    }
}

/// The form that `config::load` gives to `x_file = "path"`: the value and its file.
#[derive(Deserialize)]
pub(in crate::config) struct SecretFromFile {
    pub(in crate::config) value: String,
    pub(in crate::config) file: PathBuf,
}

impl SecretFromFile {
    /// The form in which a [`Secret`] reads it, with the tag of its origin.
    pub(in crate::config) fn into_value(self, tag: Tag) -> Value {
        let file = self.file.to_string_lossy().into_owned();
        let parts = [("value", self.value), ("file", file)];
        let tagged = parts.map(|(name, text)| (name.to_owned(), Value::String(tag, text)));
        Value::Dict(tag, tagged.into())
    }
}

struct SecretVisitor;

impl<'de> serde::de::Visitor<'de> for SecretVisitor {
    type Value = Secret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Secret, E> {
        Ok(Secret::from(value))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Secret, A::Error> {
        let from_file =
            SecretFromFile::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
        Ok(Secret { value: from_file.value, file: Some(from_file.file) })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecretVisitor)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-secret": true})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_survive_their_text() {
        for bytes in [0, 1, 1000, 1024, 64 << 10, 1 << 20, 3 << 30] {
            assert_eq!(Size::parse(&Size(bytes).to_string()), Ok(Size(bytes)));
        }
        assert!(Size::parse("much").is_err());
    }

    #[test]
    fn a_secret_never_prints() {
        assert_eq!(format!("{:?}", Secret::from("hunter2")), "***");
    }
}
