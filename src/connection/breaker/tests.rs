use std::sync::{
    Arc,
    atomic::{AtomicI64, AtomicU64},
};

use proptest::prelude::*;

use super::*;

const GOOD: Sample = Sample { failed: false, slow: false };
const BAD: Sample = Sample { failed: true, slow: false };
const SLOW: Sample = Sample { failed: false, slow: true };

fn policy() -> Policy {
    Policy {
        minimum_calls: 10,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
        max_open_for: Duration::from_mins(1),
        half_open_calls: 3,
        half_open_timeout: Duration::from_secs(30),
        ..Policy::default()
    }
}

fn after(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

/// Sends calls until one is refused or all are made; the open time is not shortened.
fn calls(core: &mut Core, now: Instant, samples: &[Sample]) -> usize {
    for (made, sample) in samples.iter().enumerate() {
        let (Ok(ticket), _) = core.admit(now) else { return made };
        core.finish(ticket, *sample, now, || 0.0);
    }
    samples.len()
}

fn opened(now: Instant) -> Core {
    let mut core = Core::new(policy(), now);
    calls(&mut core, now, &[BAD; 10]);
    assert_eq!(core.circuit(), Circuit::Open);
    core
}

#[test]
fn it_opens_at_the_failure_rate_and_not_below_the_minimum_of_calls() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    assert_eq!(calls(&mut core, now, &[BAD; 9]), 9);
    assert_eq!(core.circuit(), Circuit::Closed, "9 calls are too few");
    calls(&mut core, now, &[BAD; 1]);
    assert_eq!(core.circuit(), Circuit::Open);
    let mut core = Core::new(policy(), now);
    calls(&mut core, now, &[GOOD; 11]);
    calls(&mut core, now, &[BAD; 10]);
    assert_eq!(core.circuit(), Circuit::Closed, "10 of 21 failed");
    calls(&mut core, now, &[BAD; 1]);
    assert_eq!(core.circuit(), Circuit::Open);
}

#[test]
fn it_opens_when_calls_are_slow() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    calls(&mut core, now, &[SLOW; 9]);
    assert_eq!(core.circuit(), Circuit::Closed);
    calls(&mut core, now, &[SLOW; 1]);
    assert_eq!(core.circuit(), Circuit::Open);
}

#[test]
fn what_is_older_than_the_window_is_forgotten() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    calls(&mut core, now, &[BAD; 9]);
    calls(&mut core, after(now, 11), &[BAD; 9]);
    assert_eq!(core.circuit(), Circuit::Closed);
}

#[test]
fn trials_close_it_and_a_failed_one_opens_it_for_longer() {
    let now = Instant::now();
    let mut core = opened(now);
    assert_eq!(calls(&mut core, after(now, 4), &[GOOD]), 0);
    let half_open = after(now, 5);
    assert_eq!(calls(&mut core, half_open, &[GOOD, BAD]), 2);
    assert_eq!(core.circuit(), Circuit::Open);
    assert_eq!(calls(&mut core, after(half_open, 9), &[GOOD]), 0, "twice as long");
    assert_eq!(calls(&mut core, after(half_open, 10), &[GOOD; 3]), 3);
    assert_eq!(core.circuit(), Circuit::Closed);
}

#[test]
fn the_open_time_grows_to_its_bound_and_begins_anew_after_a_quiet_window() {
    let mut now = Instant::now();
    let mut core = opened(now);
    for expected in [5, 10, 20, 40, 60, 60] {
        assert_eq!(calls(&mut core, now + Duration::from_millis(expected * 1000 - 1), &[BAD]), 0);
        now = after(now, expected);
        assert_eq!(calls(&mut core, now, &[BAD]), 1);
    }
    now = after(now, 60);
    calls(&mut core, now, &[GOOD; 3]);
    now = after(now, 10);
    calls(&mut core, now, &[BAD; 10]);
    assert_eq!(core.admit(now).0.unwrap_err().retry_after.as_secs(), 5);
}

#[test]
fn chance_shortens_the_open_time_by_up_to_a_fifth() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    for _ in 0..10 {
        let (Ok(ticket), _) = core.admit(now) else { break };
        core.finish(ticket, BAD, now, || 0.999_999);
    }
    let left = core.admit(now).0.unwrap_err().retry_after;
    assert!((4000..4010).contains(&left.as_millis()), "{left:?}");
}

#[test]
fn half_open_cannot_stick() {
    let now = Instant::now();
    // Trials that never end count as failed.
    let mut core = opened(now);
    let half_open = after(now, 5);
    let hanging: Vec<_> = (0..3).map(|_| core.admit(half_open).0.unwrap()).collect();
    assert!(core.admit(after(half_open, 29)).0.is_err());
    assert!(core.admit(after(half_open, 30)).0.is_err());
    assert_eq!(core.circuit(), Circuit::Open);
    for ticket in hanging {
        assert_eq!(core.finish(ticket, GOOD, after(half_open, 31), || 0.0), None, "too late");
    }
    // With little traffic the good trials that there were decide.
    let mut core = opened(now);
    calls(&mut core, half_open, &[GOOD]);
    assert_eq!(calls(&mut core, after(half_open, 31), &[GOOD]), 1);
    assert_eq!(core.circuit(), Circuit::Closed);
    // Trials whose callers went away are made by others.
    let mut core = opened(now);
    for _ in 0..100 {
        let ticket = core.admit(half_open).0.unwrap();
        core.end_trial(ticket);
    }
    assert_eq!(calls(&mut core, after(half_open, 31), &[GOOD; 3]), 3);
    assert_eq!(core.circuit(), Circuit::Closed);
}

#[test]
fn results_of_an_earlier_period_do_not_count() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    let late = core.admit(now).0.unwrap();
    calls(&mut core, now, &[BAD; 10]);
    calls(&mut core, after(now, 5), &[GOOD; 2]);
    assert_eq!(core.finish(late, BAD, after(now, 5), || 0.0), None);
    calls(&mut core, after(now, 5), &[GOOD]);
    assert_eq!(core.circuit(), Circuit::Closed);
}

#[test]
fn a_probe_that_finds_the_backend_back_closes_it_without_traffic() {
    let now = Instant::now();
    let mut core = opened(now);
    assert_eq!(core.probed(false, 2, now), None);
    assert_eq!(core.probed(true, 2, now), None, "healthy_after is two");
    let change = core.probed(true, 2, now).unwrap();
    assert_eq!((change.from, change.to), (Circuit::Open, Circuit::Closed));
}

#[test]
fn where_only_calls_fail_good_probes_do_not_keep_the_open_time_short() {
    let now = Instant::now();
    let mut core = opened(now);
    // The outage may have lain between two probes, so the first time they are believed.
    assert!(core.probed(true, 1, now).is_some());
    calls(&mut core, now, &[BAD; 10]);
    assert_eq!(core.probed(true, 1, after(now, 9)), None);
    assert!(core.probed(true, 1, after(now, 10)).is_some(), "its open time elapsed");
}

/// Calls that time out, among many good ones of before, open it later than probes see the outage.
#[test]
fn an_outage_that_probes_saw_before_it_opened_ends_with_a_good_probe() {
    let now = Instant::now();
    let mut core = opened(now);
    assert!(core.probed(true, 1, now).is_some());
    assert_eq!(core.probed(false, 1, now), None);
    calls(&mut core, now, &[BAD; 10]);
    assert_eq!(core.circuit(), Circuit::Open);
    assert!(core.probed(true, 1, now).is_some(), "the backend came back");
}

/// A backend that comes and goes is refused for as long as probes see it gone, each time.
#[test]
fn outages_that_probes_saw_do_not_add_up() {
    let now = Instant::now();
    let mut core = opened(now);
    for _ in 0..5 {
        assert_eq!(core.probed(false, 1, now), None);
        assert!(core.probed(true, 1, now).is_some(), "the backend came back");
        calls(&mut core, now, &[BAD; 10]);
        assert_eq!(core.circuit(), Circuit::Open);
    }
    assert!(core.probed(true, 1, now).is_some(), "it counts as the first time");
}

#[test]
fn a_good_probe_closes_a_half_open_breaker_that_no_call_tries() {
    let now = Instant::now();
    let mut core = opened(now);
    calls(&mut core, after(now, 5), &[GOOD]);
    assert_eq!(core.circuit(), Circuit::HalfOpen);
    assert_eq!(core.probed(true, 2, after(now, 6)), None, "healthy_after is two");
    let trial = core.admit(after(now, 6)).0.unwrap();
    assert_eq!(core.probed(true, 2, after(now, 7)), None, "a trial is under way");
    core.finish(trial, GOOD, after(now, 8), || 0.0);
    assert!(core.probed(true, 2, after(now, 8)).is_some());
}

/// Good results are counted without the lock, and weigh as much.
#[test]
fn good_results_count_until_the_window_forgets_them() {
    let now = Instant::now();
    let breaker = Breaker::new(policy(), now);
    let call = |at, sample| {
        let (pass, _) = breaker.admit(at);
        pass.map(|pass| pass.finish(sample, at)).is_ok()
    };
    assert!((0..11).all(|_| call(now, GOOD)) && (0..10).all(|_| call(now, BAD)));
    assert_eq!(breaker.circuit(), Circuit::Closed, "10 of 21 failed");
    assert!(call(now, BAD));
    assert_eq!(breaker.circuit(), Circuit::Open);

    let breaker = Breaker::new(policy(), now);
    let call = |at, sample| breaker.admit(at).0.map(|pass| pass.finish(sample, at)).is_ok();
    let good = (0..10).all(|second| call(after(now, second), GOOD));
    assert!(good && (0..9).all(|_| call(after(now, 20), BAD)));
    assert_eq!(breaker.circuit(), Circuit::Closed, "9 calls are too few, and the others are old");
    assert!(call(after(now, 20), BAD));
    assert_eq!(breaker.circuit(), Circuit::Open);
}

#[test]
fn calls_of_before_a_recovery_do_not_open_it_afterwards() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    calls(&mut core, now, &[BAD; 9]);
    let late = core.admit(now).0.unwrap();
    core.recovered(now);
    assert_eq!(core.finish(late, BAD, now, || 0.0), None);
    calls(&mut core, now, &[GOOD; 5]);
    calls(&mut core, now, &[BAD; 4]);
    assert_eq!(core.circuit(), Circuit::Closed);
}

#[test]
fn an_operator_holds_it_until_automatic_which_starts_closed() {
    let now = Instant::now();
    let mut core = Core::new(policy(), now);
    assert_eq!(core.force(Force::Open, now).unwrap().to, Circuit::ForcedOpen);
    assert_eq!(core.force(Force::Open, now), None);
    assert_eq!(core.probed(true, 1, after(now, 900)), None);
    assert_eq!(calls(&mut core, after(now, 900), &[GOOD]), 0);
    assert_eq!(core.force(Force::Closed, now).unwrap().to, Circuit::ForcedClosed);
    assert_eq!(calls(&mut core, now, &[BAD; 100]), 100);
    assert_eq!(core.force(Force::Automatic, now).unwrap().to, Circuit::Closed);
    assert_eq!(calls(&mut core, now, &[BAD; 100]), 10);
    assert_eq!(core.force(Force::Automatic, now), None, "an open breaker is automatic already");
}

#[test]
fn a_shorter_bound_ends_an_open_time_that_is_longer() {
    let now = Instant::now();
    let mut core = opened(now);
    let shorter = Duration::from_secs(1);
    let policy = Policy { open_for: shorter, max_open_for: shorter, ..policy() };
    assert_eq!(core.configure(policy, now), None);
    assert_eq!(calls(&mut core, now, &[GOOD]), 0);
    assert_eq!(calls(&mut core, after(now, 1), &[GOOD]), 1);
}

#[test]
fn switched_off_it_lets_everything_pass() {
    let now = Instant::now();
    let mut core = opened(now);
    let off = Policy { enabled: false, ..policy() };
    assert_eq!(core.configure(off, now).unwrap().to, Circuit::Closed);
    assert_eq!(calls(&mut core, now, &[BAD; 1000]), 1000);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Begin,
    End { which: usize, failed: bool, slow: bool },
    Leave(usize),
    Probe(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..8_000).prop_map(Step::Wait),
        Just(Step::Begin),
        Just(Step::Begin),
        (any::<prop::sample::Index>(), any::<bool>(), any::<bool>())
            .prop_map(|(which, failed, slow)| Step::End { which: which.index(64), failed, slow }),
        (0_usize..64).prop_map(Step::Leave),
        any::<bool>().prop_map(Step::Probe),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_its_promises_hold(steps in prop::collection::vec(step(), 1..400)) {
        let policy = Policy { minimum_calls: 4, ..policy() };
        let mut now = Instant::now();
        let mut core = Core::new(policy.clone(), now);
        let mut running: Vec<Ticket> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Begin => match core.admit(now).0 {
                    Ok(ticket) => running.push(ticket),
                    Err(refusal) => {
                        prop_assert!(!matches!(core.circuit(), Circuit::Closed));
                        prop_assert!(refusal.retry_after <= policy.max_open_for);
                    }
                },
                Step::End { which, failed, slow } if !running.is_empty() => {
                    let ticket = running.swap_remove(which % running.len());
                    core.finish(ticket, Sample { failed, slow }, now, || 0.5);
                }
                Step::Leave(which) if !running.is_empty() => {
                    let ticket = running.swap_remove(which % running.len());
                    core.end_trial(ticket);
                }
                Step::Probe(good) => drop(core.probed(good, 1, now)),
                Step::End { .. } | Step::Leave(_) => {}
            }
            let trials = running.iter().filter(|one| one.trial);
            prop_assert!(trials.count() <= policy.half_open_calls as usize);
        }
        // Left alone it closes again, whatever happened before.
        running.drain(..).for_each(|ticket| core.end_trial(ticket));
        for _ in 0..3 {
            now += policy.max_open_for + policy.half_open_timeout;
            calls(&mut core, now, &[GOOD; 3]);
        }
        prop_assert_eq!(core.circuit(), Circuit::Closed);
    }
}

/// Sixty-four threads on a backend that flaps: however they meet, no more trials run at once than
/// `half_open_calls` allows.
#[test]
fn a_storm_never_exceeds_the_half_open_limit() {
    let policy = Policy {
        minimum_calls: 5,
        open_for: Duration::from_micros(200),
        max_open_for: Duration::from_micros(400),
        half_open_calls: 3,
        ..policy()
    };
    let breaker = Breaker::new(policy, Instant::now());
    let (running, most) = (AtomicI64::new(0), AtomicI64::new(0));
    let (trials, opened) = (AtomicU64::new(0), AtomicU64::new(0));
    let give_up = std::time::Instant::now() + Duration::from_mins(1);
    std::thread::scope(|scope| {
        for thread in 0..64_u64 {
            let (breaker, running, most) = (&breaker, &running, &most);
            let (trials, opened) = (&trials, &opened);
            scope.spawn(move || {
                let mut round = thread;
                while trials.load(Ordering::Relaxed) < 5_000 {
                    assert!(std::time::Instant::now() < give_up, "half-open was never reached");
                    round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let Ok(pass) = breaker.admit(Instant::now()).0 else {
                        std::thread::yield_now();
                        continue;
                    };
                    let trial = pass.ticket.trial;
                    if trial {
                        trials.fetch_add(1, Ordering::Relaxed);
                        most.fetch_max(
                            running.fetch_add(1, Ordering::SeqCst) + 1,
                            Ordering::SeqCst,
                        );
                    }
                    std::thread::yield_now();
                    if trial {
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                    // Some callers go away; the backend flaps.
                    match round >> 60 {
                        0..4 => drop(pass),
                        flap => {
                            let sample = Sample { failed: flap % 2 == 0, slow: false };
                            let change = pass.finish(sample, Instant::now());
                            let opens = change.is_some_and(|change| change.to == Circuit::Open);
                            opened.fetch_add(u64::from(opens), Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    assert!(opened.load(Ordering::Relaxed) > 10);
    let most = most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most} trials ran at once");
}

#[test]
fn a_pass_that_is_dropped_gives_its_trial_back() {
    let breaker = Arc::new(Breaker::new(policy(), Instant::now()));
    let now = Instant::now();
    for _ in 0..10 {
        drop(breaker.admit(now).0.unwrap().finish(BAD, now));
    }
    let half_open = after(now, 6);
    for _ in 0..50 {
        drop(breaker.admit(half_open).0.expect("a trial is free"));
    }
    assert_eq!(breaker.circuit(), Circuit::HalfOpen);
}
