//! Refuses NUL characters.

use poem::{Request, error::NotFoundError};

use super::super::error::bad_request;

/// No id contains a NUL, and databases do not accept one in text.
pub(super) fn refuse_nul(request: &Request) -> Result<(), poem::Error> {
    if request.uri().path().contains("%00") {
        return Err(NotFoundError.into());
    }
    if let Some(query) = request.uri().query().filter(|query| query.contains("%00")) {
        let pair = |pair: &&str| pair.contains("%00");
        let pair = query.split('&').find(pair).unwrap_or_default();
        let name = pair.split('=').next().unwrap_or_default();
        return Err(bad_request(format!("`{name}` has a NUL character")));
    }
    Ok(())
}
