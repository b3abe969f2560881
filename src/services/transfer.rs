//! Moves everything from one database to another.

use crate::{
    backends::database::Database,
    connection::Client,
    error::{Error, ErrorKind},
};

/// Rows that move together.
const PARCEL: i64 = 500;

/// Moves all rows of `from` to `to`, whose executions `backend` serves. An interrupted move
/// continues when this is called again. Reports the number of moved rows to `progress`, and returns
/// it.
///
/// # Errors
/// `Conflict` when executions that `backend` does not serve have not ended; or an error of one of
/// the databases.
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
