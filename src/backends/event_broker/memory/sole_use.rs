//! Ensures that only one process at a time keeps the stream of a database in its memory: each of
//! two would show its readers only the events that it delivered itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    backends::database::{Database, Role},
    connection::{BuildContext, Client},
    error::{Error, ErrorKind},
};

const ROLE: &str = "memory_broker";
/// The time for which a process that died still excludes the next one.
const LEASE: Duration = Duration::from_secs(10);

/// The right to sole use, as held by a broker of this process.
#[derive(Debug)]
pub(super) struct SoleUse {
    role: Role,
    lost: AtomicBool,
    /// Brokers of this process that hold it: two while one replaces the other.
    holders: Arc<AtomicUsize>,
}

impl SoleUse {
    /// Takes the right and keeps it until the broker closes. Returns `None` where the database
    /// admits no second process.
    pub(super) async fn take(
        database: &Client<dyn Database>,
        holders: &Arc<AtomicUsize>,
        context: &BuildContext,
    ) -> Result<Option<Arc<Self>>, Error> {
        if database.lease().await?.serves_one_process() {
            return Ok(None);
        }
        holders.fetch_add(1, Ordering::Relaxed);
        let sole = Arc::new(Self {
            role: Role::new(database.clone(), ROLE, Arc::clone(&context.instance), LEASE),
            lost: AtomicBool::new(false),
            holders: Arc::clone(holders),
        });
        if !sole.role.take().await? {
            return Err(held_by_another());
        }
        context.tasks.keep_until("memory_broker_lease", &context.closing, &sole, Self::keep);
        Ok(Some(sole))
    }

    /// Renews the right until it is lost; once lost, it stays lost.
    async fn keep(self: Arc<Self>) {
        while !self.lost.load(Ordering::Relaxed) {
            sleep(LEASE / 3).await;
            // While the database cannot be queried, no other process can take the right either.
            if let Ok(false) = self.role.take().await {
                self.lost.store(true, Ordering::Relaxed);
            }
        }
        std::future::pending::<()>().await;
    }

    /// # Errors
    /// When another process holds it by now, for example because this one was paused.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lost.load(Ordering::Relaxed) { Err(held_by_another()) } else { Ok(()) }
    }

    /// Admits the next process at once.
    pub(super) async fn give_back(&self) {
        if self.holders.load(Ordering::Relaxed) == 1 {
            self.role.give_back().await;
        }
    }
}

impl Drop for SoleUse {
    fn drop(&mut self) {
        self.holders.fetch_sub(1, Ordering::Relaxed);
    }
}

fn held_by_another() -> Error {
    let message = "another process on the same database keeps the stream in its memory, and only \
                   one can: choose a broker that they share, as by REDIS_URL";
    Error::new(ErrorKind::Unavailable, message)
        .with_remedy("stop the other process, or choose a broker that both share, as by REDIS_URL")
}
