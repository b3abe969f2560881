//! Request bodies: the size limit and the content type.

use poem::{
    Request,
    http::{HeaderValue, header},
};

use super::problems::Refusal;

/// Refuses a body whose declared length exceeds the limit, and buffers one of undeclared length up
/// to the limit.
pub(super) async fn bound(request: &mut Request, max: usize) -> Result<(), poem::Error> {
    let declared = request.header(header::CONTENT_LENGTH).map(str::parse::<usize>);
    if matches!(declared, Some(Ok(length)) if length > max) {
        return Err(Refusal::TooLarge.into());
    }
    // HTTP/2 needs neither a length nor a transfer encoding. Reading up to the limit costs nothing
    // without a body.
    if declared.is_none() {
        let body = request.take_body().into_bytes_limit(max).await?;
        request.set_body(body);
    }
    Ok(())
}

/// Drops parameters such as `charset=utf-8`, because they do not change the type: JSON has one
/// charset.
pub(super) fn drop_content_type_parameters(request: &mut Request) {
    let essence = request
        .header(header::CONTENT_TYPE)
        .and_then(|value| value.split_once(';'))
        .and_then(|(essence, _)| HeaderValue::from_str(essence.trim()).ok());
    if let Some(essence) = essence {
        request.headers_mut().insert(header::CONTENT_TYPE, essence);
    }
}
