//! One canonical text for all spellings of a JSON document that differ only in white space, in the
//! order of members and in the escapes of strings.

use std::borrow::Cow;

use serde_json::Number;

use super::skip_string;

/// The form of the canonical text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Numbers keep all the digits that were sent.
    Exact,
    /// Numbers are rounded to the nearest that 64 bits can hold, as in earlier releases.
    Earlier,
}

/// Appends the document without white space, with the members of each object sorted by name.
///
/// `text` must be JSON; the result for any other text has no meaning.
pub fn canonical(text: &str, form: Form, out: &mut Vec<u8>) {
    Reader { rest: text.as_bytes(), form }.value(out);
}

/// Reads from the start of the remaining text.
struct Reader<'a> {
    rest: &'a [u8],
    form: Form,
}

impl<'a> Reader<'a> {
    fn value(&mut self, out: &mut Vec<u8>) {
        match self.peek() {
            Some(b'{') => self.object(out),
            Some(b'[') => self.array(out),
            _ => out.extend_from_slice(&self.scalar()),
        }
    }

    fn object(&mut self, out: &mut Vec<u8>) {
        let mut members: Vec<(Cow<'a, [u8]>, Vec<u8>)> = Vec::new();
        self.step();
        while !matches!(self.peek(), Some(b'}') | None) {
            let name = self.scalar();
            // The colon.
            self.peek();
            self.step();
            let mut value = Vec::new();
            self.value(&mut value);
            members.push((name, value));
            if self.peek() == Some(b',') {
                self.step();
            }
        }
        self.step();
        // The sort is stable: members of the same name keep their order.
        members.sort_by(|(one, _), (other, _)| said(one).cmp(&said(other)));
        out.push(b'{');
        for (place, (name, value)) in members.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name);
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
    }

    fn array(&mut self, out: &mut Vec<u8>) {
        out.push(b'[');
        self.step();
        let mut is_first = true;
        while !matches!(self.peek(), Some(b']') | None) {
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            self.value(out);
            if self.peek() == Some(b',') {
                self.step();
            }
        }
        self.step();
        out.push(b']');
    }

    /// A string, a number, or a word.
    fn scalar(&mut self) -> Cow<'a, [u8]> {
        let first = self.peek();
        let text = self.scalar_as_sent(first == Some(b'"'));
        let written = match first {
            Some(b'"') if text.contains(&b'\\') => string(text),
            Some(b'-' | b'0'..=b'9') if self.form == Form::Earlier => rounded(text),
            _ => None,
        };
        written.map_or(Cow::Borrowed(text), |text| Cow::Owned(text.into_bytes()))
    }

    fn scalar_as_sent(&mut self, is_string: bool) -> &'a [u8] {
        let begin = self.rest;
        let mut bytes = begin.iter();
        // At least one byte is consumed, so that reading always ends.
        let _first = bytes.next();
        if is_string {
            skip_string(&mut bytes);
        } else {
            let ends = |byte: &u8| b",:]}".contains(byte) || byte.is_ascii_whitespace();
            let left = bytes.as_slice();
            bytes = left[left.iter().position(ends).unwrap_or(left.len())..].iter();
        }
        self.rest = bytes.as_slice();
        &begin[..begin.len() - self.rest.len()]
    }

    /// Returns the next byte that is not white space, without consuming it.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn step(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }
}

/// Returns the content of a string, without quotes and escapes.
fn said(string: &[u8]) -> Cow<'_, [u8]> {
    if string.contains(&b'\\') {
        let said = serde_json::from_slice::<String>(string).unwrap_or_default();
        return Cow::Owned(said.into_bytes());
    }
    let open = string.strip_prefix(b"\"").unwrap_or(string);
    Cow::Borrowed(open.strip_suffix(b"\"").unwrap_or(open))
}

/// Returns a string with the fewest escapes.
fn string(text: &[u8]) -> Option<String> {
    let said: String = serde_json::from_slice(text).ok()?;
    serde_json::to_string(&said).ok()
}

fn rounded(text: &[u8]) -> Option<String> {
    serde_json::from_slice(text).ok().map(|number: Number| number.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn written(of: &str, form: Form) -> String {
        let mut out = Vec::new();
        canonical(of, form, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn text(of: &str) -> String {
        written(of, Form::Exact)
    }

    #[test]
    fn white_space_order_of_members_and_escapes_do_not_count() {
        let one = " {\"b\" : [ 1 , {\"d\":2, \"c\" :\"x y\"} ] ,\n\t\"a\": null } ";
        assert_eq!(text(one), r#"{"a":null,"b":[1,{"c":"x y","d":2}]}"#);
        assert_eq!(text(r#"{"\u00e9":"\u0041\/\n"}"#), r#"{"é":"A/\n"}"#);
        for empty in ["{}", "[]", "\"\"", "[[],{}]"] {
            assert_eq!(text(empty), empty);
        }
    }

    #[test]
    fn digits_and_the_order_of_items_count() {
        for (one, other) in [
            ("1.0", "1"),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
            (r#"{"a":"}"}"#, r#"{"a":"]"}"#),
        ] {
            assert_ne!(text(one), text(other));
        }
        assert_eq!(text("1234567890123456789012345"), "1234567890123456789012345");
    }

    #[test]
    fn what_is_no_json_comes_to_an_end() {
        for broken in ["", "{", "[", "{\"a\"", "{\"a\":", "[1", "}", ",,", "\"abc", "{1:}", "[}"] {
            let _something = text(broken);
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_layout_of_a_value_has_the_same_text_which_is_the_value(value in values()) {
            let compact = text(&value.to_string());
            prop_assert_eq!(&compact, &text(&format!("{value:#}")));
            prop_assert_eq!(&compact, &text(&compact));
            prop_assert_eq!(serde_json::from_str::<Value>(&compact).unwrap(), value.clone());
            // Earlier releases wrote a value in this form.
            prop_assert_eq!(compact, value.to_string());
        }

        #[test]
        fn rounded_numbers_are_written_as_a_reader_with_64_bits_writes_them(
            number in "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?"
        ) {
            let value: Value = serde_json::from_str(&number).unwrap();
            prop_assert_eq!(written(&number, Form::Earlier), value.to_string());
            prop_assert_eq!(text(&number), number);
        }
    }
}
