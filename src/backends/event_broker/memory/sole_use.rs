//! One process at a time keeps the stream of a database in its memory: of two, each would show its
//! readers only what it delivered itself.

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
/// One that died keeps the next out for so long.
const LEASE: Duration = Duration::from_secs(10);

/// The right to be the one, as a broker of this process has it.
#[derive(Debug)]
pub(super) struct SoleUse {
    role: Role,
    lost: AtomicBool,
    /// Brokers of this process that have it: two while one replaces the other.
    holders: Arc<AtomicUsize>,
}

impl SoleUse {
    /// Takes it, and keeps it until the broker closes. None where the database lets no second
    /// process in.
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

    /// Until it is lost; one that was lost stays lost.
    async fn keep(self: Arc<Self>) {
        while !self.lost.load(Ordering::Relaxed) {
            sleep(LEASE / 3).await;
            // While the database cannot be asked, no other process can take it either.
            if let Ok(false) = self.role.take().await {
                self.lost.store(true, Ordering::Relaxed);
            }
        }
        std::future::pending::<()>().await;
    }

    /// # Errors
    /// When another process has it by now, as after this one was paused.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lost.load(Ordering::Relaxed) { Err(held_by_another()) } else { Ok(()) }
    }

    /// Lets the next process in at once.
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
