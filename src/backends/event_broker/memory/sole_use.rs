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
    backends::database::Database,
    connection::{BuildContext, Managed, Operation},
    error::{Error, ErrorKind},
};

const TAKE_ROLE: Operation = Operation::idempotent("take_role");
const GIVE_ROLE_BACK: Operation = Operation::idempotent("give_role_back");
pub(super) const OPERATIONS: [Operation; 2] = [TAKE_ROLE, GIVE_ROLE_BACK];

const ROLE: &str = "memory_broker";
/// One that died keeps the next out for so long.
const LEASE: Duration = Duration::from_secs(10);

/// The right to be the one, as a broker of this process has it.
#[derive(Debug)]
pub(super) struct SoleUse {
    database: Managed<dyn Database>,
    owner: Arc<str>,
    lost: AtomicBool,
    /// Brokers of this process that have it: two while one replaces the other.
    holders: Arc<AtomicUsize>,
}

impl SoleUse {
    /// Takes it, and keeps it until the broker closes. None where the database lets no second
    /// process in.
    pub(super) async fn take(
        database: &Managed<dyn Database>,
        holders: &Arc<AtomicUsize>,
        context: &BuildContext,
    ) -> Result<Option<Arc<Self>>, Error> {
        if database.lease().await?.serves_one_process() {
            return Ok(None);
        }
        holders.fetch_add(1, Ordering::Relaxed);
        let sole = Arc::new(Self {
            database: database.clone(),
            owner: Arc::clone(&context.instance),
            lost: AtomicBool::new(false),
            holders: Arc::clone(holders),
        });
        if !sole.renew().await? {
            return Err(held_by_another());
        }
        let kept = Arc::clone(&sole);
        let closing = context.closing.clone();
        context.tasks.spawn(async move { closing.run_until_cancelled(kept.keep()).await });
        Ok(Some(sole))
    }

    async fn renew(&self) -> Result<bool, Error> {
        let owner = &*self.owner;
        self.database
            .call(TAKE_ROLE, |database| async move { database.take_role(ROLE, owner, LEASE).await })
            .await
    }

    async fn keep(&self) {
        loop {
            sleep(LEASE / 3).await;
            // While the database cannot be asked, no other process can take it either.
            if let Ok(false) = self.renew().await {
                self.lost.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    /// # Errors
    /// When another process has it by now, as after this one was paused.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.lost.load(Ordering::Relaxed) { Err(held_by_another()) } else { Ok(()) }
    }

    /// Lets the next process in at once.
    pub(super) async fn give_back(&self) {
        if self.holders.load(Ordering::Relaxed) > 1 {
            return;
        }
        let owner = &*self.owner;
        let given_back =
            self.database
                .call(GIVE_ROLE_BACK, |database| async move {
                    database.give_role_back(ROLE, owner).await
                })
                .await;
        if let Err(error) = given_back {
            tracing::debug!(%error, "the place of the memory broker cannot be given back, it expires");
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
}
