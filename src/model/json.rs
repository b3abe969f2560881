//! Words for JSON values, for messages about input.

use serde_json::Value;

/// The most that a message repeats of a client's text, in characters.
const MAX_TEXT: usize = 40;

/// A value in words; long text is cut, and what holds other values is named only.
#[must_use]
pub fn found(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > MAX_TEXT => {
            format!("{:?}…", text.chars().take(MAX_TEXT).collect::<String>())
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        // Text in quotes, numbers, booleans, null.
        other => other.to_string(),
    }
}
