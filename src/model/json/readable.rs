//! Checks that every reader can read a JSON text.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// Any JSON value, parsed and dropped. Text that is only skipped or kept may hold half of a
/// surrogate pair, or a number beyond all bounds, and make its readers fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readable;

/// Checks that `text` is JSON that every reader can read.
///
/// # Errors
/// States the place of the first problem.
pub fn check(text: &[u8]) -> serde_json::Result<()> {
    serde_json::from_slice(text).map(|Readable| ())
}

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Readable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_i64<E>(self, _value: i64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_u64<E>(self, _value: u64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_str<E>(self, _value: &str) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_unit<E>(self) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Readable, A::Error> {
        while items.next_element::<Readable>()?.is_some() {}
        Ok(Readable)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Readable, A::Error> {
        while members.next_entry::<Readable, Readable>()?.is_some() {}
        Ok(Readable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_readers_refuse_is_not_readable() {
        for good in [r#"{"a":[1,-2.5e3,"\ud83d\ude00",null,true]}"#, " 1 ", "123456789012345678901"]
        {
            assert!(check(good.as_bytes()).is_ok(), "{good}");
        }
        let deep = "[".repeat(150) + &"]".repeat(150);
        for bad in ["", "{", "1e999", r#""\ud83d""#, r#"{"\udc00":1}"#, "[1] 2", "\"\n\"", &deep] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(b"\"\xff\"").is_err());
    }
}
