//! The id of a request, in its log lines and in its answer.

use poem::{Request, Response, http::HeaderValue};

use crate::model::ids;

const REQUEST_ID: &str = "x-request-id";
/// The longest request id that is accepted from a client.
const MAX_REQUEST_ID: usize = 64;

/// Accepts a client's id if it is harmless in a header and in a log line, or else creates one.
pub(super) fn of(request: &Request) -> String {
    request
        .header(REQUEST_ID)
        .filter(|id| {
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
        })
        .map_or_else(ids::new_id, str::to_owned)
}

/// Returns the id to the client.
pub(super) fn tell(response: &mut Response, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}
