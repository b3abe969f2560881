//! By what a repeated request is recognised.

use sha2::{Digest, Sha256};

use super::Form;

/// A hash of what a client sent, blind to white space, the order of members and escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// With all digits of all numbers.
    hash: String,
    /// As earlier releases stored it, where that differs.
    earlier: Option<String>,
}

impl Fingerprint {
    /// Of the text that `write` appends.
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

    /// What is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.hash
    }

    /// Whether `stored` is of the same text.
    #[must_use]
    pub fn matches(&self, stored: &str) -> bool {
        self.hash == stored || self.earlier.as_deref() == Some(stored)
    }
}

fn hash(text: &[u8]) -> String {
    hex::encode(Sha256::digest(text))
}
