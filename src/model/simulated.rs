//! The clock, the chance and the ids of a simulation, which are the same whenever its seed is.

use std::cell::RefCell;

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use super::time::Timestamp;

thread_local! {
    static SIMULATION: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

struct Simulation {
    began_at: Timestamp,
    begin: Instant,
    random: StdRng,
    ids: u64,
}

/// From now on, this thread has the clock of its paused runtime, and the chance of the seed.
pub(crate) fn begin(seed: u64, began_at: Timestamp) {
    let random = StdRng::seed_from_u64(seed);
    let simulation = Simulation { began_at, begin: Instant::now(), random, ids: 0 };
    SIMULATION.set(Some(simulation));
}

fn of<T>(ask: impl FnOnce(&mut Simulation) -> T) -> Option<T> {
    SIMULATION.with_borrow_mut(|simulation| simulation.as_mut().map(ask))
}

/// The time, if this thread simulates.
pub(super) fn now() -> Option<Timestamp> {
    of(|simulation| simulation.began_at + simulation.begin.elapsed())
}

/// A number in 0..1, if this thread simulates.
pub(super) fn chance() -> Option<f64> {
    of(|simulation| simulation.random.random())
}

/// A new id, if this thread simulates.
pub(super) fn id() -> Option<String> {
    of(|simulation| {
        simulation.ids += 1;
        format!("id-{:08}", simulation.ids)
    })
}
