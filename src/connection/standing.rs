//! Where a connection stands: its state, who waits for it to change, and how it came there.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    Service, Transition,
    probe::{ProbeState, Verdict},
    timeline::Timeline,
};
use crate::{
    config::Probe,
    error::{Error, ErrorKind},
};

/// The state of a connection.
pub(super) struct Standing {
    connection: &'static str,
    state: Mutex<ProbeState>,
    changed: watch::Sender<Service>,
    timeline: Arc<Timeline>,
}

impl Standing {
    pub(super) fn new(connection: &'static str, timeline: Arc<Timeline>, now: Instant) -> Self {
        Self {
            connection,
            state: Mutex::new(ProbeState::new(now)),
            changed: watch::Sender::new(Service::NotInitialized),
            timeline,
        }
    }

    pub(super) fn service(&self) -> Service {
        self.state.lock().service()
    }

    /// Notifies of each change from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Service> {
        self.changed.subscribe()
    }

    /// Reads all of it at one moment.
    pub(super) fn look<T>(&self, look: impl FnOnce(&ProbeState) -> T) -> T {
        look(&self.state.lock())
    }

    pub(super) fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Records an error of a call, which a probe may not have met.
    pub(super) fn note_error(&self, kind: ErrorKind) {
        self.state.lock().note_error(kind);
    }

    /// The backend is being built.
    pub(super) fn building(&self, cause: &'static str) {
        let building = self.state.lock().building(Instant::now(), cause);
        if let Some(transition) = building {
            self.announce(transition, Service::Initializing, None);
        }
    }

    /// The connection is closed for good.
    pub(super) fn closed(&self) {
        let closed = self.state.lock().closed(Instant::now());
        if let Some(transition) = closed {
            self.announce(transition, Service::Closed, None);
        }
    }

    /// Records the result of a probe, or of an attempt to build the backend.
    pub(super) fn record(
        &self,
        took: Duration,
        result: Result<(), &Error>,
        policy: &Probe,
    ) -> (Verdict, Service) {
        let (verdict, service) = {
            let mut state = self.state.lock();
            let outcome = result.map_err(Error::kind);
            (state.record(Instant::now(), took, outcome, policy), state.service())
        };
        if let Some(transition) = verdict.transition.clone() {
            self.announce(transition, service, result.err());
        }
        (verdict, service)
    }

    /// A state is logged when it changes, not each time it is found again.
    fn announce(&self, transition: Transition, service: Service, error: Option<&Error>) {
        let (connection, to, cause) = (self.connection, transition.to, &*transition.cause);
        let lasted_ms = u64::try_from(transition.lasted.as_millis()).unwrap_or(u64::MAX);
        if let Some(error) = error {
            let (class, remedy) = (error.kind().as_str(), error.remedy());
            tracing::warn!(
                connection, to, cause, lasted_ms, error = %error, error.class = class, remedy,
                "{connection} is {to}"
            );
        } else {
            tracing::info!(connection, to, cause, lasted_ms, "{connection} is {to}");
        }
        self.timeline.push(transition);
        self.changed.send_replace(service);
    }
}
