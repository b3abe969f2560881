//! `Idempotency-Key`.

use poem_openapi::types::ParseFromJSON;
use sha2::{Digest, Sha256};

use super::{edge::Caller, error::bad_request};
use crate::{
    error::{Error, ErrorKind},
    services::accept::RequestKey,
};

/// The longest key.
const MAX_KEY: usize = 255;

/// The key as the draft standard writes it, a quoted string, or as most clients do, bare. `body`
/// tells one request from another.
pub(super) fn request_key(
    header: Option<String>,
    caller: &Caller,
    route: &str,
    body: &str,
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
        body_hash: hex::encode(Sha256::digest(body)),
    }))
}

/// What the first request with a key was answered.
pub(super) fn first_answer<T: ParseFromJSON>(answer: &str) -> Result<T, Error> {
    T::parse_from_json_string(answer).map_err(|error| {
        Error::new(ErrorKind::Incompatible, "the stored answer cannot be read")
            .with_source(std::io::Error::other(error.into_message()))
    })
}
