//! The id of a request, on its log lines and on its answer.

use poem::{Request, Response, http::HeaderValue};

use crate::model::ids;

const REQUEST_ID: &str = "x-request-id";
/// The longest request id that is taken over from a client.
const MAX_REQUEST_ID: usize = 64;

/// A client's id is taken over if it is harmless in a header and in a log line.
pub(super) fn of(request: &Request) -> String {
    request
        .header(REQUEST_ID)
        .filter(|id| {
            (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
        })
        .map_or_else(ids::new_id, str::to_owned)
}

/// Tells the client the id.
pub(super) fn tell(response: &mut Response, request_id: &str) {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}
