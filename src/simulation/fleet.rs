//! All replicas, and what happens to them.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::Rng;
use tokio::time::{Instant, sleep};

use super::{
    member::Member,
    world::{Faults, Peer, World},
};

/// Faults of one run.
const FAULTS: u32 = 8;
/// The share of answers that get lost while there are faults.
const LOST_ANSWERS: f64 = 0.01;

/// All replicas.
pub(super) struct Fleet {
    world: Arc<World>,
    pub(super) members: Vec<Member>,
}

impl Fleet {
    pub(super) fn start(world: &Arc<World>) -> Self {
        let replicas = world.random(|random| random.random_range(1..=3));
        let pool = if world.random(|random| random.random_bool(0.5)) { 2 } else { 20 };
        world.note(&format!("{replicas} replicas with pools of {pool}"));
        let members = (0..replicas).map(|number| Member::start(world, number, pool)).collect();
        Self { world: Arc::clone(world), members }
    }

    /// Lets faults happen, in an order and at times that the seed gives.
    pub(super) async fn suffer(&self, during: Duration) {
        self.world.truth.lock().faults.lost_answers = LOST_ANSWERS;
        let each = during / FAULTS;
        for _ in 0..FAULTS {
            let (kind, share) = self
                .world
                .random(|random| (random.random_range(0..7_u32), random.random_range(0.1..1.0)));
            let lasts = each.mul_f64(share);
            self.strike(kind, Instant::now() + lasts);
            sleep(each).await;
        }
    }

    fn strike(&self, kind: u32, until: Instant) {
        let peer = self.world.random(|random| match random.random_range(0..3_u32) {
            0 => Peer::Database,
            1 => Peer::Broker,
            _ => Peer::Service,
        });
        let member = self.world.random(|random| random.random_range(0..self.members.len()));
        let mut truth = self.world.truth.lock();
        let faults = &mut truth.faults;
        match kind {
            0 | 1 => {
                faults.down.insert(peer, until);
            }
            2 => {
                faults.slow.insert(peer, (until, Duration::from_millis(20)));
            }
            3 => faults.throttled = Some(until),
            4 => *self.members[member].replica.frozen_until.lock() = Some(until),
            5 if self.members.iter().filter(|member| member.is_alive()).count() > 1 => {
                self.members[member].replica.killed.store(true, Ordering::Relaxed);
            }
            // Leases are lost, as after a pause of the database.
            _ => {
                let now = Instant::now();
                truth.lanes.iter_mut().for_each(|lane| lane.until = now);
                truth.executions.values_mut().for_each(|row| row.claimed_until = now);
                truth.roles.clear();
            }
        }
        drop(truth);
        self.world.note(&format!("fault {kind} {peer:?} {member}"));
    }

    /// Ends all faults.
    pub(super) fn recover(&self) {
        let mut truth = self.world.truth.lock();
        truth.faults = Faults::default();
        truth.recovered = Some(Instant::now());
        drop(truth);
        for member in &self.members {
            *member.replica.frozen_until.lock() = None;
        }
        self.world.note("no more faults");
    }

    pub(super) async fn stop(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.is_alive()) {
            member.stop().await;
        }
    }
}
