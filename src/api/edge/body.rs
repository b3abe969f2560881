//! Bodies: how large they may be, and what their type is.

use poem::{
    Request,
    http::{HeaderValue, header},
};

use super::problems::Refusal;

/// Refuses a body that is declared too large, and buffers one of undeclared length up to the
/// bound.
pub(super) async fn bound(request: &mut Request, max: usize) -> Result<(), poem::Error> {
    let declared = request.header(header::CONTENT_LENGTH).map(str::parse::<usize>);
    if matches!(declared, Some(Ok(length)) if length > max) {
        return Err(Refusal::TooLarge.into());
    }
    // HTTP/2 declares neither; reading to the bound costs nothing where there is no body.
    if declared.is_none() {
        let body = request.take_body().into_bytes_limit(max).await?;
        request.set_body(body);
    }
    Ok(())
}

/// `application/cloudevents+json; charset=utf-8` is that type too; JSON has one charset.
pub(super) fn drop_content_type_parameters(request: &mut Request) {
    let essence = request
        .header(header::CONTENT_TYPE)
        .and_then(|value| value.split_once(';'))
        .and_then(|(essence, _)| HeaderValue::from_str(essence.trim()).ok());
    if let Some(essence) = essence {
        request.headers_mut().insert(header::CONTENT_TYPE, essence);
    }
}
