//! The fingerprint by which a repeated request is recognised.

use sha2::{Digest, Sha256};

use super::Form;

/// A hash of a client's JSON, independent of white space, the order of members and escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// The hash with all digits of all numbers.
    hash: String,
    /// The hash that earlier releases stored, if it differs.
    earlier: Option<String>,
}

impl Fingerprint {
    /// Hashes the text that `write` appends.
    #[must_use]
    pub fn new(write: impl Fn(Form, &mut Vec<u8>)) -> Self {
        let mut text = Vec::new();
        write(Form::Exact, &mut text);
        let hash = hash(&text);
        let mut rounded = Vec::with_capacity(text.len());
        write(Form::Earlier, &mut rounded);
        let earlier = (rounded != text).then(|| self::hash(&rounded));
        Self { hash, earlier }
    }

    /// The hash to store.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.hash
    }

    /// The hash that earlier releases stored, if it differs.
    #[must_use]
    pub fn earlier(&self) -> Option<&str> {
        self.earlier.as_deref()
    }

    /// True when `stored` is a hash of the same text.
    #[must_use]
    pub fn matches(&self, stored: &str) -> bool {
        self.hash == stored || self.earlier.as_deref() == Some(stored)
    }
}

fn hash(text: &[u8]) -> String {
    hex::encode(Sha256::digest(text))
}
