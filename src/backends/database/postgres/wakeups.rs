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
    model::lanes::Slots,
};

/// How often a silent connection is checked.
const ASK_EVERY: Duration = Duration::from_secs(15);
/// How long the check may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The slots in the next notification. `None` when none came for a while and the connection still
/// works.
async fn next(conn: &mut Conn) -> Result<Option<Slots>, Error> {
    let heard = {
        let mut notifications = std::pin::pin!(conn.notifications_stream());
        timeout(ASK_EVERY, notifications.next()).await
    };
    match heard {
        Ok(Some(Ok(notification))) => return Ok(Some(slots_in(&notification.payload))),
        Ok(Some(Err(error))) => return Err(error.into()),
        Ok(None) => return Err(silent("the connection that listens has ended")),
        Err(_silent) => {}
    }
    match timeout(ANSWER_WITHIN, conn.batch_execute("SELECT 1")).await {
        Ok(answered) => Ok(answered.map(|()| None)?),
        Err(_silent) => Err(silent("the connection that listens is dead")),
    }
}

/// The previous program does not say which slots have new events.
fn slots_in(payload: &str) -> Slots {
    payload.parse().unwrap_or(Slots::ALL)
}

fn silent(message: &'static str) -> Error {
    Error::new(ErrorKind::Disconnected, message)
}

#[async_trait]
impl Wakeups for Db {
    // Not in the accepting transaction, where `NOTIFY` would make all commits wait for one lock.
    async fn wake_others(&self, slots: &Slots) -> Result<(), Error> {
        let mut conn = self.pool.get().await?;
        Ok(conn.batch_execute(&format!("NOTIFY agentarea_outbox, '{slots}'")).await?)
    }

    async fn woken(&self) -> Result<Slots, Error> {
        let mut ear = self.ear.lock().await;
        if ear.is_none() {
            let mut conn = self.connector.connect().await?;
            conn.batch_execute("LISTEN agentarea_outbox").await?;
            *ear = Some(conn);
            // Earlier notifications are not received.
            return Ok(Slots::ALL);
        }
        // Taken out, so that a connection that fails or is cancelled midway is not reused.
        let Some(mut conn) = ear.take() else { return Ok(Slots::ALL) };
        loop {
            if let Some(slots) = next(&mut conn).await? {
                *ear = Some(conn);
                return Ok(slots);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Factory, *};
    use crate::{
        backends::{database::contract, test_server},
        config::Section,
        connection::Factory as _,
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_notification_says_which_slots_have_new_events() {
        let server = test_server::PostgresDatabase::create().await;
        let section = Section(json!({"url": server.url}));
        let context = contract::context();
        let one = Factory.build(&section, &context).await.unwrap();
        let two = Factory.build(&section, &context).await.unwrap();
        assert_eq!(one.woken().await.unwrap(), Slots::ALL, "it may have missed some");
        let news: Slots = [0, 7, 8, 255].into_iter().collect();
        two.wake_others(&news).await.unwrap();
        assert_eq!(one.woken().await.unwrap(), news);
        // As the previous program notifies, and as a later one may.
        for statement in ["NOTIFY agentarea_outbox", "NOTIFY agentarea_outbox, 'more'"] {
            server.within(statement).await;
            assert_eq!(one.woken().await.unwrap(), Slots::ALL);
        }
        one.close().await;
        two.close().await;
        drop((one, two));
        server.drop().await;
    }
}
