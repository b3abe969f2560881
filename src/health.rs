//! The overall status, derived from the last results of the probes. Does no I/O.

use strum::IntoStaticStr;

use crate::{
    config::HealthHttpStatus,
    connection::{Circuit, ConnectionReport},
};

/// The overall status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    /// The probes do not run, or a task cannot be restarted: the process is stuck.
    Stalled,
    /// The service is stopping.
    Draining,
    /// A required connection is down.
    Unhealthy,
    /// A required connection has been neither established nor refused yet.
    Starting,
    /// The service works, but not all of its parts do.
    Degraded,
    /// Everything works.
    Healthy,
}

impl Status {
    /// Stable name, as it appears in the report.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// True when the process works, which a liveness probe asks.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        !matches!(self, Self::Stalled)
    }

    /// True when it should receive traffic, which a readiness probe asks.
    #[must_use]
    pub const fn is_ready(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }

    /// The HTTP status of `/health`.
    #[must_use]
    pub const fn http_status(self, mapping: &HealthHttpStatus) -> u16 {
        match self {
            Self::Stalled => mapping.stalled,
            Self::Draining => mapping.draining,
            Self::Unhealthy => mapping.unhealthy,
            Self::Starting => mapping.starting,
            Self::Degraded => mapping.degraded,
            Self::Healthy => mapping.healthy,
        }
    }
}

/// Returns the overall status: the first that applies. `hopeless` means that a task cannot be
/// restarted, `late` that accepted work has waited for too long.
#[must_use]
pub fn status(reports: &[ConnectionReport], hopeless: bool, draining: bool, late: bool) -> Status {
    let any = |holds: &dyn Fn(&ConnectionReport) -> bool| reports.iter().any(holds);
    if hopeless || any(&|report| report.stalled) {
        Status::Stalled
    } else if draining {
        Status::Draining
    } else {
        match connections_status(reports) {
            None => Status::Starting,
            Some(Status::Healthy) if late => Status::Degraded,
            Some(status) => status,
        }
    }
}

/// Returns the worst status of the connections; `None` while a required one is undecided.
#[must_use]
pub fn connections_status(reports: &[ConnectionReport]) -> Option<Status> {
    let any = |holds: &dyn Fn(&ConnectionReport) -> bool| reports.iter().any(holds);
    if any(&|report| report.required && report.down) {
        Some(Status::Unhealthy)
    } else if any(&|report| report.required && !report.decided) {
        None
    } else if any(&|report| report.down || report.circuit != Circuit::Closed) {
        Some(Status::Degraded)
    } else {
        Some(Status::Healthy)
    }
}

/// True when no backend was built for a single call: each one used was the first or a replacement.
#[must_use]
pub fn connection_reuse(reports: &[ConnectionReport]) -> bool {
    reports.iter().all(|report| report.builds <= 1 + report.rebuilds + report.discarded)
}

/// True when at most one backend of each connection lives, except during a swap.
#[must_use]
pub fn singleton_pattern(reports: &[ConnectionReport]) -> bool {
    reports.iter().all(|report| report.live <= 1 || report.swapping)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::connection::Service;

    fn report(required: bool, service: Service) -> ConnectionReport {
        ConnectionReport {
            name: "database",
            backend: "sqlite".to_owned(),
            required,
            service,
            circuit: Circuit::Closed,
            retry_budget: 1.0,
            decided: matches!(service, Service::Initialized | Service::Unavailable),
            down: service == Service::Unavailable,
            builds: 1,
            rebuilds: 0,
            discarded: 0,
            build_failures: 0,
            live: 1,
            swapping: false,
            uses: 0,
            in_use: 0,
            acquire_mean: Duration::ZERO,
            acquire_max: Duration::ZERO,
            pool: None,
            probe: None,
            last_error: None,
            recoveries: 0,
            stalled: false,
        }
    }

    #[test]
    fn every_row_of_the_table_holds_and_the_first_wins() {
        use Service::{Initialized, Initializing, NotInitialized, Unavailable};
        let up = report(true, Initialized);
        let mut hung = report(false, Initialized);
        hung.stalled = true;
        for (reports, draining, expected) in [
            (vec![up.clone(), report(false, NotInitialized)], false, Status::Healthy),
            (vec![up.clone(), report(false, Unavailable)], false, Status::Degraded),
            (vec![report(true, Initializing)], false, Status::Starting),
            (
                vec![report(true, NotInitialized), report(false, Unavailable)],
                false,
                Status::Starting,
            ),
            (vec![report(true, Unavailable), report(true, Initializing)], false, Status::Unhealthy),
            (vec![report(true, Unavailable)], true, Status::Draining),
            (vec![hung, report(true, Unavailable)], true, Status::Stalled),
        ] {
            assert_eq!(status(&reports, false, draining, false), expected, "{reports:?}");
            assert_eq!(status(&reports, true, draining, false), Status::Stalled, "{reports:?}");
        }
    }

    #[test]
    fn probes_answer_as_the_table_says() {
        let mapping = HealthHttpStatus::default();
        for (status, health, alive, ready) in [
            (Status::Stalled, 503, false, false),
            (Status::Draining, 503, true, false),
            (Status::Unhealthy, 200, true, false),
            (Status::Starting, 503, true, false),
            (Status::Degraded, 200, true, true),
            (Status::Healthy, 200, true, true),
        ] {
            assert_eq!(status.http_status(&mapping), health, "{status:?}");
            assert_eq!(status.is_alive(), alive, "{status:?}");
            assert_eq!(status.is_ready(), ready, "{status:?}");
        }
    }

    #[test]
    fn a_backend_built_for_a_single_call_would_show() {
        let mut report = report(true, Service::Initialized);
        assert!(connection_reuse(std::slice::from_ref(&report)));
        report.builds = 3;
        report.rebuilds = 1;
        assert!(!connection_reuse(&[report]));
    }
}
