//! One text for all spellings of a JSON document that differ in white space and in the order of
//! members alone.

use super::skip_string;

/// The document without white space, and with the members of each object in the order of their
/// names. Numbers and strings stay as they are spelled.
///
/// `text` has to be JSON; of anything else something is made that is good for nothing.
#[must_use]
pub fn canonical(text: &str) -> Vec<u8> {
    let mut reader = Reader { rest: text.as_bytes() };
    let mut out = Vec::with_capacity(text.len());
    reader.value(&mut out);
    out
}

/// Reads from the beginning of what is left.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn value(&mut self, out: &mut Vec<u8>) {
        match self.peek() {
            Some(b'{') => self.object(out),
            Some(b'[') => self.array(out),
            _ => out.extend_from_slice(self.scalar()),
        }
    }

    fn object(&mut self, out: &mut Vec<u8>) {
        let mut members: Vec<(&'a [u8], Vec<u8>)> = Vec::new();
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
        // Members of the same name keep their order.
        members.sort_by_key(|(name, _)| *name);
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
    fn scalar(&mut self) -> &'a [u8] {
        let is_string = self.peek() == Some(b'"');
        let begin = self.rest;
        let mut bytes = begin.iter();
        // At least one, so that whatever is read comes to its end.
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

    /// The next byte that is no white space, which is not taken.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn step(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn text(of: &str) -> String {
        String::from_utf8(canonical(of)).unwrap()
    }

    #[test]
    fn white_space_and_the_order_of_members_do_not_count() {
        let one = " {\"b\" : [ 1 , {\"d\":2, \"c\" :\"x y\"} ] ,\n\t\"a\": null } ";
        assert_eq!(text(one), r#"{"a":null,"b":[1,{"c":"x y","d":2}]}"#);
        for empty in ["{}", "[]", "\"\"", "[[],{}]"] {
            assert_eq!(text(empty), empty);
        }
    }

    #[test]
    fn spelling_and_the_order_of_items_count() {
        for (one, other) in [
            ("1.0", "1"),
            ("[1,2]", "[2,1]"),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
            (r#""\u00e9""#, r#""é""#),
            (r#"{"a":"}"}"#, r#"{"a":"]"}"#),
        ] {
            assert_ne!(text(one), text(other));
        }
        assert_eq!(text("1234567890123456789012345"), "1234567890123456789012345");
    }

    #[test]
    fn what_is_no_json_comes_to_an_end() {
        for broken in ["", "{", "[", "{\"a\"", "{\"a\":", "[1", "}", ",,", "\"abc", "{1:}", "[}"] {
            let _something = canonical(broken);
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
            let compact = canonical(&value.to_string());
            prop_assert_eq!(&compact, &canonical(&format!("{value:#}")));
            prop_assert_eq!(serde_json::from_slice::<Value>(&compact).unwrap(), value);
            prop_assert_eq!(&compact, &canonical(std::str::from_utf8(&compact).unwrap()));
        }
    }
}
