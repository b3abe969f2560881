//! The breaker's state machine. It is pure: time, chance and results are passed in.

use tokio::time::Instant;

use super::{Change, Force, Refusal, Sample};
use crate::{
    config::CircuitBreaker as Policy,
    connection::{report::Circuit, window::Window},
};

/// The open time is shortened at random by up to this share, so that replicas do not try in step.
const JITTER: f64 = 0.2;

/// An admitted call. Its result counts only in the period in which it was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) period: u64,
    pub(super) trial: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open(Open),
    HalfOpen(Trials),
    ForcedOpen,
    ForcedClosed,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    until: Instant,
    /// Successful probes in a row since it opened.
    good_probes: u32,
    /// A probe has failed since, or last before: the next good one means that the backend came back.
    outage_seen: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Trials {
    good: u32,
    slow: u32,
    /// Good probes in a row since it began.
    good_probes: u32,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Core {
    policy: Policy,
    state: State,
    since: Instant,
    /// Counts state changes, so that a call that began before one says nothing after it.
    period: u64,
    window: Window,
    /// Trials under way, those of earlier half-open periods included: they still reach the backend.
    /// Each ends, because the guard bounds it.
    running_trials: u32,
    /// Times it opened without having stayed closed for a whole window, since the last outage that
    /// probes saw begin and end.
    opened_in_row: u32,
    /// What the last probe said, in whatever state: calls can take longer than probes to show an
    /// outage.
    probe_failed: bool,
}

impl Core {
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        let window = Window::new(policy.window, now);
        Self {
            policy,
            state: State::Closed,
            since: now,
            period: 0,
            window,
            running_trials: 0,
            opened_in_row: 0,
            probe_failed: false,
        }
    }

    pub(super) fn period(&self) -> u64 {
        self.period
    }

    /// Whether every call passes without being asked.
    pub(super) fn passes_all(&self) -> bool {
        matches!(self.state, State::Closed | State::ForcedClosed)
    }

    /// When the window's current span ends, to which [`Self::add_good`] counts.
    pub(super) fn span_ends(&self) -> Instant {
        self.window.span_ends()
    }

    pub(super) fn add_good(&mut self, calls: u32) {
        self.window.add_good(calls);
    }

    pub(super) fn circuit(&self) -> Circuit {
        match self.state {
            State::Closed => Circuit::Closed,
            State::Open(_) => Circuit::Open,
            State::HalfOpen(_) => Circuit::HalfOpen,
            State::ForcedOpen => Circuit::ForcedOpen,
            State::ForcedClosed => Circuit::ForcedClosed,
        }
    }

    /// Applies new settings without losing the counts.
    pub(super) fn configure(&mut self, policy: Policy, now: Instant) -> Option<Change> {
        if policy.window != self.policy.window {
            self.window = Window::new(policy.window, now);
        }
        let switched_off = !policy.enabled && !self.circuit().is_forced();
        self.policy = policy;
        if let State::Open(open) = &mut self.state {
            open.until = open.until.min(self.since + self.policy.max_open_for);
        }
        let passes = matches!(self.state, State::Closed);
        (switched_off && !passes).then(|| self.enter(State::Closed, now, "switched off".to_owned()))
    }

    pub(super) fn admit(&mut self, now: Instant) -> (Result<Ticket, Refusal>, Option<Change>) {
        let mut change = None;
        match self.state {
            State::Open(open) if now >= open.until => {
                let cause = "its open time elapsed".to_owned();
                change = Some(self.enter(State::HalfOpen(Trials::default()), now, cause));
            }
            State::HalfOpen(trials) if self.stayed_too_long(now) => {
                change = self.end_half_open(trials, now);
            }
            _ => {}
        }
        (self.ticket(now), change)
    }

    fn stayed_too_long(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.policy.half_open_timeout
    }

    /// Half-open may not last for ever: without enough traffic the good trials there were decide,
    /// and trials that do not come back count as failed.
    fn end_half_open(&mut self, trials: Trials, now: Instant) -> Option<Change> {
        if self.running_trials > 0 {
            let cause = "its trials did not end within half_open_timeout".to_owned();
            return Some(self.open(now, cause, 0.0));
        }
        if trials.good > 0 {
            let cause = "its trials were good".to_owned();
            return Some(self.close(now, cause));
        }
        self.since = now;
        None
    }

    fn ticket(&mut self, now: Instant) -> Result<Ticket, Refusal> {
        let period = self.period;
        match self.state {
            State::Closed | State::ForcedClosed => Ok(Ticket { period, trial: false }),
            State::Open(open) => {
                Err(Refusal { retry_after: open.until.saturating_duration_since(now) })
            }
            State::HalfOpen(trials) => {
                if self.running_trials + trials.good >= self.policy.half_open_calls {
                    return Err(Refusal { retry_after: self.policy.open_for });
                }
                self.running_trials += 1;
                Ok(Ticket { period, trial: true })
            }
            State::ForcedOpen => Err(Refusal { retry_after: self.policy.max_open_for }),
        }
    }

    /// Takes in the result of an admitted call. `chance` gives a number in 0..1.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        sample: Sample,
        now: Instant,
        chance: impl FnOnce() -> f64,
    ) -> Option<Change> {
        self.end_trial(ticket);
        if ticket.period != self.period || !self.policy.enabled {
            return None;
        }
        match &mut self.state {
            State::Closed => {
                self.window.add(now, sample.failed, sample.slow);
                let cause = self.window.verdict(&self.policy)?;
                Some(self.open(now, cause, chance()))
            }
            State::HalfOpen(trials) => {
                if sample.failed {
                    return Some(self.open(now, "a trial failed".to_owned(), chance()));
                }
                trials.good += 1;
                trials.slow += u32::from(sample.slow);
                let trials = *trials;
                if trials.good < self.policy.half_open_calls {
                    return None;
                }
                if f64::from(trials.slow) >= self.policy.slow_call_rate * f64::from(trials.good) {
                    return Some(self.open(now, "its trials were slow".to_owned(), chance()));
                }
                Some(self.close(now, "its trials were good".to_owned()))
            }
            State::Open(_) | State::ForcedOpen | State::ForcedClosed => None,
        }
    }

    /// A trial ended, or its caller went away before the result was known, so that another can
    /// make it.
    pub(super) fn end_trial(&mut self, ticket: Ticket) {
        if ticket.trial {
            self.running_trials = self.running_trials.saturating_sub(1);
        }
    }

    /// Takes in the result of a background probe, which is a trial of its own: without traffic it
    /// is the only one.
    pub(super) fn probed(
        &mut self,
        good: bool,
        healthy_after: u32,
        now: Instant,
    ) -> Option<Change> {
        let stayed_too_long = self.stayed_too_long(now);
        self.probe_failed = !good;
        match &mut self.state {
            State::Open(open) if !good => {
                open.good_probes = 0;
                open.outage_seen = true;
                None
            }
            State::Open(open) => {
                open.good_probes += 1;
                // Where probes are good and calls fail all the same, the probe must not keep the
                // open time from growing.
                let believed = open.outage_seen || self.opened_in_row == 1 || now >= open.until;
                let (enough, outage_seen) = (open.good_probes >= healthy_after, open.outage_seen);
                if !(believed && enough) {
                    return None;
                }
                if outage_seen {
                    // Probes saw it come and go: they can be trusted the next time as well.
                    self.opened_in_row = 0;
                }
                Some(self.close(now, "a probe was good".to_owned()))
            }
            State::HalfOpen(trials) => {
                trials.good_probes = if good { trials.good_probes + 1 } else { 0 };
                // Trials under way will say more than a probe can.
                let without_traffic = self.running_trials == 0 || stayed_too_long;
                let enough = trials.good_probes >= healthy_after;
                (without_traffic && enough).then(|| self.close(now, "a probe was good".to_owned()))
            }
            _ => None,
        }
    }

    /// The probes found the connection down and now up again: what calls met before, or meet that
    /// began before, says nothing of it any more.
    pub(super) fn recovered(&mut self, now: Instant) {
        if matches!(self.state, State::Closed) {
            self.period += 1;
            self.window.clear(now);
        }
    }

    pub(super) fn force(&mut self, force: Force, now: Instant) -> Option<Change> {
        let (to, state) = match force {
            Force::Open => (Circuit::ForcedOpen, State::ForcedOpen),
            Force::Closed => (Circuit::ForcedClosed, State::ForcedClosed),
            Force::Automatic if !self.circuit().is_forced() => return None,
            Force::Automatic => (Circuit::Closed, State::Closed),
        };
        (self.circuit() != to).then(|| self.enter(state, now, "an operator".to_owned()))
    }

    fn open(&mut self, now: Instant, cause: String, chance: f64) -> Change {
        let stayed_closed = matches!(self.state, State::Closed)
            && now.saturating_duration_since(self.since) >= self.policy.window;
        self.opened_in_row = if stayed_closed { 1 } else { self.opened_in_row.saturating_add(1) };
        let doublings = (self.opened_in_row - 1).min(16);
        let longest = self.policy.open_for.saturating_mul(1 << doublings);
        let longest = longest.min(self.policy.max_open_for);
        let until = now + longest.mul_f64(1.0 - JITTER * chance);
        let open = Open { until, good_probes: 0, outage_seen: self.probe_failed };
        self.enter(State::Open(open), now, cause)
    }

    fn close(&mut self, now: Instant, cause: String) -> Change {
        self.enter(State::Closed, now, cause)
    }

    fn enter(&mut self, state: State, now: Instant, cause: String) -> Change {
        let (from, lasted) = (self.circuit(), now.saturating_duration_since(self.since));
        if !matches!(state, State::Open(_) | State::HalfOpen(_) | State::Closed) {
            self.opened_in_row = 0;
        }
        self.state = state;
        self.since = now;
        self.period += 1;
        self.window.clear(now);
        Change { from, to: self.circuit(), cause, lasted }
    }
}
