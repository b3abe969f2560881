//! JSON from clients: kept as text, checked so that every reader can read it, compared by its
//! content, and described in messages.

mod canonical;
mod fingerprint;
mod members;
mod readable;
mod text;

use serde_json::Value;

pub use self::{
    canonical::{Form, canonical},
    fingerprint::Fingerprint,
    members::Members,
    readable::{Readable, check},
    text::Json,
};

/// The maximum nesting depth of a client's value or a result. An accepted value must be readable
/// everywhere: readers of JSON stop at 128 levels, and an event, a list or another envelope of ours
/// adds a few.
pub const MAX_DEPTH: usize = 100;

/// Refuses JSON that is nested deeper than [`MAX_DEPTH`].
///
/// # Errors
/// Returns a message that continues "the value …".
pub fn check_depth(text: &[u8]) -> Result<(), String> {
    if depth(text) > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    Ok(())
}

/// The nesting depth of a text that should be JSON. Only brackets are examined, so that the depth
/// is known before the text is parsed.
#[must_use]
pub fn depth(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Advances past the closing quote of a string.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                let _escaped = bytes.next();
            }
            _ => {}
        }
    }
}

/// The maximum number of characters that a message repeats of a client's text.
const MAX_TEXT: usize = 40;

/// Describes a value in words. Long text is cut, and the contents of arrays and objects are left
/// out.
#[must_use]
pub fn found(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > MAX_TEXT => {
            format!("{:?}…", text.chars().take(MAX_TEXT).collect::<String>())
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        // Quoted text, numbers, booleans and null.
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(levels: usize) -> Value {
        (1..levels).fold(json!([]), |inner, _| json!([inner]))
    }

    #[test]
    fn brackets_inside_of_text_are_no_depth() {
        assert_eq!(depth(br#"{"a": [1, {"b": "[[[\"[["}], "c\\": []}"#), 3);
        assert_eq!(depth(b"\"[[["), 0);
        assert_eq!(depth(b"]]][["), 2);
        assert_eq!(depth(nested(50).to_string().as_bytes()), 50);
    }
}
