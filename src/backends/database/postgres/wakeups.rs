//! `LISTEN` and `NOTIFY` between processes.

use std::time::Duration;

use async_trait::async_trait;
use diesel_async::SimpleAsyncConnection;
use futures_util::StreamExt;
use tokio::time::timeout;

use super::dialect::{Conn, Db};
use crate::{
    backends::{database::Wakeups, pool::Connect},
    error::{Error, ErrorKind},
};

/// How often a silent connection is checked.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// How long the check may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The next notification. `None` when none came for a while and the connection still works.
async fn next(conn: &mut Conn) -> Result<Option<()>, Error> {
    let heard = {
        let mut notifications = std::pin::pin!(conn.notifications_stream());
        timeout(ASK_EVERY, notifications.next()).await
    };
    match heard {
        Ok(Some(Ok(_notification))) => return Ok(Some(())),
        Ok(Some(Err(error))) => return Err(error.into()),
        Ok(None) => return Err(silent("the connection that listens has ended")),
        Err(_silent) => {}
    }
    match timeout(ANSWER_WITHIN, conn.batch_execute("SELECT 1")).await {
        Ok(answered) => Ok(answered.map(|()| None)?),
        Err(_silent) => Err(silent("the connection that listens is dead")),
    }
}

fn silent(message: &'static str) -> Error {
    Error::new(ErrorKind::Disconnected, message)
}

#[async_trait]
impl Wakeups for Db {
    // Not in the accepting transaction, where `NOTIFY` would make all commits wait for one lock.
    async fn wake_others(&self) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        Ok(conn.batch_execute("NOTIFY agentarea_outbox").await?)
    }

    async fn woken(&self) -> Result<(), Error> {
        let mut ear = self.ear.lock().await;
        if ear.is_none() {
            let mut conn = self.connector.connect().await?;
            conn.batch_execute("LISTEN agentarea_outbox").await?;
            *ear = Some(conn);
            // Earlier notifications are not received.
            return Ok(());
        }
        // Taken out, so that a connection that fails or is cancelled midway is not reused.
        let Some(mut conn) = ear.take() else { return Ok(()) };
        loop {
            if next(&mut conn).await?.is_some() {
                *ear = Some(conn);
                return Ok(());
            }
        }
    }
}
