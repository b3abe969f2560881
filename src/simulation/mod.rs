//! A simulation of the fleet: accepting, starting, delivering, following and housekeeping of one to
//! three replicas on backends in memory, under paused time, in an order and with faults that a seed
//! gives. A seed that fails is printed, and repeats.
//!
//! It has found futures that held connections while nobody polled them, and batches that went event
//! by event because one of them was refused.

mod broker;
mod check;
mod clients;
mod database;
mod fleet;
mod link;
mod member;
mod service;
mod world;

use std::{
    num::NonZero,
    panic,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use self::{fleet::Fleet, world::World};

/// Seeds of one run of the tests; `SIMULATION_SEEDS` sets another number, `SIMULATION_SEED` one seed.
const SEEDS: u64 = 300;
/// One seed in so many runs twice, and must do the same both times.
const REPEATED: u64 = 10;
/// The time during which clients send and faults happen.
const FAULTS: Duration = Duration::from_secs(40);
/// The time after the last fault within which everything that was accepted must have left: runs
/// take up to 20 seconds of it.
const PROGRESS: Duration = Duration::from_mins(1);

/// Runs one seed, and returns what happened.
fn run(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = World::new(seed, number("SIMULATION_SEED").is_some());
        let mut fleet = Fleet::start(&world);
        let (accepted, ()) =
            tokio::join!(clients::send(&world, &fleet, FAULTS), fleet.suffer(FAULTS));
        fleet.recover();
        check::all_leaves(&world, PROGRESS).await;
        fleet.stop().await;
        check::nothing_is_held(&world, &fleet);
        check::promises_are_kept(&world, &accepted);
        world.trace()
    })
}

#[expect(clippy::disallowed_methods, reason = "the test's own, no configuration")]
fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs a seed; one of ten twice.
fn check(seed: u64) {
    let trace = run(seed);
    if seed.is_multiple_of(REPEATED) {
        let again = run(seed);
        let differs = trace.iter().zip(&again).find(|(once, twice)| once != twice);
        assert_eq!(differs, None, "seed {seed} does not repeat");
        assert_eq!(trace.len(), again.len(), "seed {seed} does not repeat");
    }
}

#[test]
fn whatever_fails_in_whatever_order_accepted_work_leaves_once_and_in_order() {
    let (first, count) = match number("SIMULATION_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("SIMULATION_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let run_seeds = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !(first..first + count).contains(&seed) {
                return;
            }
            if panic::catch_unwind(|| check(seed)).is_err() {
                next.store(first + count, Ordering::Relaxed);
                panic!("see above; SIMULATION_SEED={seed} repeats it, and shows what happens");
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(run_seeds);
        }
    });
}
