//! Moving everything from one database to another.

use crate::{
    backends::database::Database,
    connection::Client,
    error::{Error, ErrorKind},
};

/// Rows that move together.
const PARCEL: i64 = 500;

/// Moves all rows of `from` to `to`, whose executions `backend` serves. What was interrupted goes on
/// when it is called again. Tells `progress` how many rows have moved, and gives their number.
///
/// # Errors
/// `Conflict` when executions have not ended that `backend` does not serve; or why one of the
/// databases cannot be asked.
pub async fn move_all(
    from: &dyn Database,
    to: &Client<dyn Database>,
    backend: &str,
    mut progress: impl FnMut(usize),
) -> Result<usize, Error> {
    let open = from.open_elsewhere(backend).await?;
    if open > 0 {
        let message = format!(
            "{open} executions have not ended that the configured execution service, {backend}, \
             does not serve; let the service that uses the file end them first, or set \
             execution_service.backend to theirs"
        );
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let mut moved = 0;
    while let Some(parcel) = from.next_parcel(PARCEL).await? {
        let rows = &parcel;
        to.take_in(rows).await?;
        from.forget(&parcel).await?;
        moved += parcel.rows();
        progress(moved);
    }
    Ok(moved)
}
