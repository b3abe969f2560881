//! `Idempotency-Key`.

use serde::de::DeserializeOwned;

use super::{edge::Caller, error::bad_request};
use crate::{
    error::{Error, ErrorKind},
    model::json::{Fingerprint, Form},
    services::accept::RequestKey,
};

/// The longest key.
const MAX_KEY: usize = 255;

/// Reads the key: a quoted string as in the draft standard, or bare as most clients send it.
/// `identity` appends the text that distinguishes requests; it is called only if there is a key.
pub(super) fn request_key(
    header: Option<String>,
    caller: &Caller,
    route: &str,
    identity: impl Fn(Form, &mut Vec<u8>),
) -> Result<Option<RequestKey>, poem::Error> {
    let Some(header) = header else { return Ok(None) };
    let bare = header.trim();
    let key = bare.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(bare);
    if key.is_empty()
        || key.len() > MAX_KEY
        || !key.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    {
        return Err(bad_request(format!(
            "`Idempotency-Key` must have 1 to {MAX_KEY} printable ASCII characters"
        )));
    }
    Ok(Some(RequestKey {
        scope: format!("{} {route}", caller.name()),
        key: key.to_owned(),
        fingerprint: Fingerprint::new(identity),
    }))
}

/// Reads the stored answer to the first request with a key.
pub(super) fn first_answer<T: DeserializeOwned>(answer: &str) -> Result<T, Error> {
    serde_json::from_str(answer).map_err(|error| {
        Error::new(ErrorKind::Incompatible, "the stored answer cannot be read").with_source(error)
    })
}
