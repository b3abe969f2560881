//! JSON as clients send it: kept as text, checked so that every reader can read it, compared by
//! what it says, and named in messages.

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

/// How deep a value of a client's, or a result, may be nested. What is accepted has to be readable
/// wherever it goes: readers of JSON stop at 128 levels, and an event, a list or another envelope
/// of ours adds a few.
pub const MAX_DEPTH: usize = 100;

/// Refuses JSON that is nested deeper than [`MAX_DEPTH`].
///
/// # Errors
/// Says so, after "the value …".
pub fn check_depth(text: &[u8]) -> Result<(), String> {
    if depth(text) > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    Ok(())
}

/// How deep a text that should be JSON is nested. Looks at brackets alone, so that it is known
/// before the text is read.
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

/// Goes on behind the quote that ends a string.
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
