//! How a replica reaches a backend: over pooled connections, a distance and faults.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::Rng;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::world::{Peer, Truth, World};
use crate::error::{Error, ErrorKind, RetryClass};

/// The time that a call waits for a pooled connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way from a replica to a backend.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) world: Arc<World>,
    pub(super) peer: Peer,
    pub(super) replica: Arc<Replica>,
    /// The pooled connections.
    pub(super) pool: Arc<Semaphore>,
}

/// What may happen to a replica.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) name: String,
    pub(super) frozen_until: Mutex<Option<Instant>>,
    pub(super) killed: AtomicBool,
}

impl Replica {
    /// Returns when the replica runs.
    async fn runs(&self) {
        if self.killed.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let frozen = *self.frozen_until.lock();
        if let Some(until) = frozen {
            sleep_until(until).await;
        }
    }
}

impl Link {
    /// Makes one call: waits for a connection, and for the way there and back.
    pub(super) async fn call<T>(
        &self,
        name: &str,
        effect: impl FnOnce(&mut Truth, &World) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        self.replica.runs().await;
        let connection = timeout(PATIENCE, self.pool.acquire()).await;
        let Ok(Ok(_connection)) = connection else {
            self.replica.runs().await;
            self.world.starved(&self.replica.name, name);
            return Err(Error::new(ErrorKind::Overloaded, "no connection was free in time"));
        };
        self.travel().await;
        self.check_up()?;
        let share = self.world.truth.lock().faults.lost_answers;
        let lost = self.world.random(|random| random.random_bool(share));
        let done = effect(&mut self.world.truth.lock(), &self.world);
        let how = done.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
        let lost_how = if lost { ", its answer is lost" } else { "" };
        self.world.note(&format!("{} {name} {how}{lost_how}", self.replica.name));
        self.travel().await;
        if lost {
            let error = Error::new(ErrorKind::Disconnected, "the answer was lost");
            return Err(error.with_retry(RetryClass::MaybeSent));
        }
        done
    }

    fn check_up(&self) -> Result<(), Error> {
        let down = self.world.truth.lock().faults.down.get(&self.peer).copied();
        if down.is_some_and(|until| Instant::now() < until) {
            let error = Error::new(ErrorKind::Disconnected, "it is down");
            return Err(error.with_retry(RetryClass::NotSent));
        }
        Ok(())
    }

    async fn travel(&self) {
        self.replica.runs().await;
        let micros = self.world.random(|random| random.random_range(50..2000));
        let slow = self.world.truth.lock().faults.slow.get(&self.peer).copied();
        let slow = slow.filter(|(until, _)| Instant::now() < *until).map(|(_, by)| by);
        sleep(Duration::from_micros(micros) + slow.unwrap_or_default()).await;
        self.replica.runs().await;
    }

    pub(super) async fn probe(&self) -> Result<(), Error> {
        self.travel().await;
        self.check_up()
    }
}
