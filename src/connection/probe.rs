//! The state of a connection, derived from its probes. Pure: time and results are passed in.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    report::{ProbeReport, Service},
    timeline::{Subject, Transition},
};
use crate::{
    config::Probe,
    error::ErrorKind,
    model::time::{self, Timestamp},
};

/// One finished probe, or one attempt to make the backend.
#[derive(Clone, Copy, Debug)]
struct Finished {
    at: Instant,
    latency: Duration,
    ok: bool,
}

/// The state of a connection, and its history.
#[derive(Debug)]
pub(super) struct ProbeState {
    service: Service,
    since: Instant,
    last: Option<Finished>,
    failures_in_row: u32,
    successes_in_row: u32,
    /// It was initialized at least once.
    has_worked: bool,
    outage_began: Option<Instant>,
    recoveries: u64,
    last_error: Option<(ErrorKind, Timestamp)>,
}

/// The actions that the caller must take after a probe.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// The state changed: log it once.
    pub(super) transition: Option<Transition>,
    /// The connection recovered after this time.
    pub(super) recovered_after: Option<Duration>,
    /// The backend failed often enough to be rebuilt.
    pub(super) rebuild: bool,
}

impl ProbeState {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            service: Service::NotInitialized,
            since: now,
            last: None,
            failures_in_row: 0,
            successes_in_row: 0,
            has_worked: false,
            outage_began: None,
            recoveries: 0,
            last_error: None,
        }
    }

    pub(super) fn service(&self) -> Service {
        self.service
    }

    /// True from the first success or failure on.
    pub(super) fn decided(&self) -> bool {
        self.last.is_some()
    }

    pub(super) fn recoveries(&self) -> u64 {
        self.recoveries
    }

    pub(super) fn last_error(&self) -> Option<(ErrorKind, Timestamp)> {
        self.last_error
    }

    pub(super) fn report(&self, now: Instant) -> Option<ProbeReport> {
        self.last.map(|last| ProbeReport {
            ok: last.ok,
            age: now.saturating_duration_since(last.at),
            latency: last.latency,
            failures_in_row: self.failures_in_row,
        })
    }

    /// The backend is being made.
    pub(super) fn building(&mut self, now: Instant, cause: &'static str) -> Option<Transition> {
        (self.service == Service::NotInitialized)
            .then(|| self.change(now, Service::Initializing, cause, None))
    }

    /// The connection was closed at shutdown.
    pub(super) fn closed(&mut self, now: Instant) -> Option<Transition> {
        (self.service != Service::Closed)
            .then(|| self.change(now, Service::Closed, "shutdown", None))
    }

    /// Records an error of a call, which a probe may not have met.
    pub(super) fn note_error(&mut self, kind: ErrorKind) {
        self.last_error = Some((kind, time::now()));
    }

    /// Records the result of a probe, or of an attempt to build the backend.
    pub(super) fn record(
        &mut self,
        now: Instant,
        latency: Duration,
        result: Result<(), ErrorKind>,
        policy: &Probe,
    ) -> Verdict {
        if self.service == Service::Closed {
            return Verdict::default();
        }
        self.last = Some(Finished { at: now, latency, ok: result.is_ok() });
        match result {
            Ok(()) => self.succeeded(now, policy),
            Err(kind) => self.failed(now, kind, policy),
        }
    }

    fn succeeded(&mut self, now: Instant, policy: &Probe) -> Verdict {
        self.failures_in_row = 0;
        self.successes_in_row = self.successes_in_row.saturating_add(1);
        let up_already = self.service == Service::Initialized;
        if up_already {
            self.outage_began = None;
            return Verdict::default();
        }
        // The threshold guards against flapping, so it does not delay the very first success.
        let came_back = self.has_worked && self.outage_began.is_some();
        if came_back && self.successes_in_row < policy.healthy_after {
            return Verdict::default();
        }
        let began = self.outage_began.take().filter(|_| came_back);
        let outage = began.map(|began| now.saturating_duration_since(began));
        self.has_worked = true;
        if came_back {
            self.recoveries += 1;
        }
        let cause = if came_back { "recovered" } else { "connected" };
        Verdict {
            transition: Some(self.change(now, Service::Initialized, cause, None)),
            recovered_after: outage,
            rebuild: false,
        }
    }

    fn failed(&mut self, now: Instant, kind: ErrorKind, policy: &Probe) -> Verdict {
        self.successes_in_row = 0;
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        self.outage_began.get_or_insert(now);
        self.note_error(kind);
        let beyond = self.failures_in_row >= policy.unhealthy_after;
        let goes_down = match self.service {
            Service::Initialized => beyond,
            Service::Unavailable | Service::Closed => false,
            // The connection has never worked, so there is no state to keep.
            Service::NotInitialized | Service::Initializing => true,
        };
        let cause =
            if self.service == Service::Initialized { "probe failed" } else { "connect failed" };
        Verdict {
            transition: goes_down
                .then(|| self.change(now, Service::Unavailable, cause, Some(kind))),
            recovered_after: None,
            rebuild: beyond,
        }
    }

    fn change(
        &mut self,
        now: Instant,
        to: Service,
        cause: &'static str,
        error: Option<ErrorKind>,
    ) -> Transition {
        let transition = Transition {
            at: time::now(),
            subject: Subject::Connection,
            from: self.service.as_str(),
            to: to.as_str(),
            cause: cause.into(),
            error,
            lasted: now.saturating_duration_since(self.since),
        };
        self.service = to;
        self.since = now;
        transition
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OK: Result<(), ErrorKind> = Ok(());
    const REFUSED: Result<(), ErrorKind> = Err(ErrorKind::Refused);

    fn policy(unhealthy_after: u32, healthy_after: u32) -> Probe {
        Probe { unhealthy_after, healthy_after, ..Probe::default() }
    }

    fn run(state: &mut ProbeState, policy: &Probe, results: &[Result<(), ErrorKind>]) -> Verdict {
        let mut verdict = Verdict::default();
        for result in results {
            let now = state.since + Duration::from_secs(5);
            verdict = state.record(now, Duration::from_millis(1), *result, policy);
        }
        verdict
    }

    #[test]
    fn a_working_connection_goes_down_only_at_its_threshold() {
        let policy = policy(3, 1);
        let mut state = ProbeState::new(Instant::now());
        run(&mut state, &policy, &[OK, REFUSED, REFUSED]);
        assert_eq!(state.service(), Service::Initialized);
        let verdict = run(&mut state, &policy, &[REFUSED]);
        assert_eq!(state.service(), Service::Unavailable);
        assert!(verdict.rebuild);
    }

    #[test]
    fn a_connection_that_never_worked_is_down_at_once() {
        let mut state = ProbeState::new(Instant::now());
        run(&mut state, &policy(3, 1), &[REFUSED]);
        assert_eq!(state.service(), Service::Unavailable);
    }

    #[test]
    fn recovery_waits_for_its_threshold_and_counts_once() {
        let policy = policy(1, 2);
        let mut state = ProbeState::new(Instant::now());
        run(&mut state, &policy, &[OK, REFUSED, OK]);
        assert_eq!(state.service(), Service::Unavailable);
        let verdict = run(&mut state, &policy, &[OK]);
        assert_eq!(state.service(), Service::Initialized);
        assert!(verdict.recovered_after.is_some());
        run(&mut state, &policy, &[OK, OK]);
        assert_eq!(state.recoveries(), 1);
    }

    #[test]
    fn a_first_connect_after_failures_is_no_recovery() {
        let mut state = ProbeState::new(Instant::now());
        let verdict = run(&mut state, &policy(1, 3), &[REFUSED, REFUSED, OK]);
        assert_eq!(state.service(), Service::Initialized);
        assert_eq!(verdict.transition.map(|change| change.cause), Some("connected".into()));
        assert_eq!((verdict.recovered_after, state.recoveries()), (None, 0));
    }

    /// The rules in the fewest words: what a connection is after a result.
    fn expected(
        was: Service,
        has_worked: bool,
        (good, bad): (u32, u32),
        policy: &Probe,
    ) -> Service {
        use Service::{Initialized, NotInitialized, Unavailable};
        match was {
            NotInitialized if good > 0 => Initialized,
            NotInitialized => Unavailable,
            Initialized if bad >= policy.unhealthy_after => Unavailable,
            Unavailable if good > 0 && !has_worked => Initialized,
            Unavailable if good >= policy.healthy_after => Initialized,
            unchanged => unchanged,
        }
    }

    proptest! {
        #[test]
        fn thresholds_decide_and_the_times_add_up(
            unhealthy_after in 1_u32..5, healthy_after in 1_u32..5,
            results in prop::collection::vec((any::<bool>(), 0_u64..30), 1..60),
        ) {
            let (policy, begin) = (policy(unhealthy_after, healthy_after), Instant::now());
            let mut state = ProbeState::new(begin);
            let (mut now, mut told, mut outage) = (begin, Duration::ZERO, None);
            let (mut good, mut bad, mut recoveries) = (0, 0, 0);
            for (ok, seconds) in results {
                now += Duration::from_secs(seconds);
                (good, bad) = if ok { (good + 1, 0) } else { (0, bad + 1) };
                let (was, has_worked) = (state.service(), state.has_worked);
                if !ok {
                    outage.get_or_insert(now);
                } else if was == Service::Initialized {
                    outage = None;
                }
                let result = if ok { OK } else { REFUSED };
                let verdict = state.record(now, Duration::ZERO, result, &policy);
                let is = state.service();
                prop_assert_eq!(is, expected(was, has_worked, (good, bad), &policy));
                prop_assert_eq!(verdict.rebuild, !ok && bad >= unhealthy_after);
                prop_assert_eq!(verdict.transition.is_some(), is != was);
                told += verdict.transition.map_or(Duration::ZERO, |change| change.lasted);
                let up = is == Service::Initialized && was == Service::Unavailable;
                let back = up && has_worked;
                let lasted = outage.filter(|_| back).map(|began| now - began);
                prop_assert_eq!(verdict.recovered_after, lasted);
                recoveries += u64::from(back);
                if up {
                    outage = None;
                }
                prop_assert_eq!(state.recoveries(), recoveries);
            }
            prop_assert_eq!(told + (now - state.since), now - begin);
        }
    }
}
