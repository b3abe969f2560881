//! A simulated kubelet.

use std::time::Duration;

use reqwest::Client;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::interval;

use crate::support::{Service, http_client};

/// The length of one second of the manifest in the simulation, so that ten minutes take six
/// seconds. The service's own probes are faster by the same factor; timeouts of answers are not
/// shortened.
const SECOND: Duration = Duration::from_millis(10);

/// A probe from the manifest, with the defaults of Kubernetes for missing fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Probe {
    pub(super) http_get: HttpGet,
    #[serde(default)]
    pub(super) initial_delay_seconds: u32,
    #[serde(default = "ten")]
    pub(super) period_seconds: u32,
    #[serde(default = "one")]
    pub(super) timeout_seconds: u32,
    #[serde(default = "three")]
    pub(super) failure_threshold: u32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpGet {
    path: String,
    port: Port,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub(super) enum Port {
    Number(u16),
    Name(String),
}

const fn ten() -> u32 {
    10
}

const fn one() -> u32 {
    1
}

const fn three() -> u32 {
    3
}

/// The probe settings of a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    ports: Vec<ContainerPort>,
    pub(super) startup_probe: Option<Probe>,
    pub(super) liveness_probe: Probe,
    pub(super) readiness_probe: Probe,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ContainerPort {
    name: Option<String>,
    container_port: u16,
}

impl Container {
    pub(super) fn of(deployment: &str) -> Self {
        let deployment: Value = serde_saphyr::from_str(deployment).unwrap();
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        serde_json::from_value(container.clone()).unwrap()
    }

    pub(super) fn port(&self, probe: &Probe) -> u16 {
        match &probe.http_get.port {
            Port::Number(number) => *number,
            Port::Name(name) => {
                let named = |port: &&ContainerPort| port.name.as_ref() == Some(name);
                self.ports.iter().find(named).unwrap().container_port
            }
        }
    }
}

/// The state of a probe.
#[derive(Debug)]
pub(super) struct Prober {
    pub(super) probe: Probe,
    http: Client,
    pub(super) sent: u32,
    failures_in_row: u32,
    /// How often the threshold was reached: restarts by a liveness probe, removals from the load
    /// balancer by a readiness probe.
    pub(super) reached: u32,
    pub(super) complaints: Vec<String>,
}

impl Prober {
    fn new(probe: Probe) -> Self {
        // The kubelet opens a connection for each probe.
        let http = http_client()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(probe.timeout_seconds.into()));
        let http = http.build().unwrap();
        Self { probe, http, sent: 0, failures_in_row: 0, reached: 0, complaints: Vec::new() }
    }

    async fn at(&mut self, second: u32, base: &str) {
        let since = second.checked_sub(self.probe.initial_delay_seconds);
        if since.is_some_and(|since| since % self.probe.period_seconds == 0) {
            self.sent += 1;
            let sending = self.http.get(format!("{base}{}", self.probe.http_get.path)).send();
            let failure = match sending.await {
                Ok(answer) if (200..400).contains(&answer.status().as_u16()) => None,
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(error.to_string()),
            };
            self.judge(failure.map(|failure| format!("at {second} s: {failure}")));
        }
    }

    fn judge(&mut self, failure: Option<String>) {
        self.failures_in_row = if failure.is_some() { self.failures_in_row + 1 } else { 0 };
        self.complaints.extend(failure);
        if self.failures_in_row == self.probe.failure_threshold {
            self.reached += 1;
            // A restarted container starts with fresh probes.
            self.failures_in_row = 0;
        }
    }
}

/// The kubelet, which knows the service only through its probes.
pub(super) struct Kubelet {
    /// The startup probe; until it succeeds, the others are not sent.
    pub(super) startup: Option<Prober>,
    pub(super) liveness: Prober,
    pub(super) readiness: Prober,
    now: u32,
}

impl Kubelet {
    pub(super) fn of(deployment: &str) -> Self {
        let container = Container::of(deployment);
        Self {
            startup: container.startup_probe.map(Prober::new),
            liveness: Prober::new(container.liveness_probe),
            readiness: Prober::new(container.readiness_probe),
            now: 0,
        }
    }

    /// Sends every probe that is due within `seconds`; returns the number of each kind.
    pub(super) async fn watch(&mut self, service: &Service, seconds: u32) -> (u32, u32) {
        let before = (self.liveness.sent, self.readiness.sent);
        let mut clock = interval(SECOND);
        for _ in 0..seconds {
            clock.tick().await;
            self.now += 1;
            if let Some(startup) = &mut self.startup {
                startup.at(self.now, &service.base).await;
                if startup.sent > 0 && startup.failures_in_row == 0 {
                    assert_eq!(startup.reached, 0, "{:?}", startup.complaints);
                    self.startup = None;
                }
                continue;
            }
            self.liveness.at(self.now, &service.base).await;
            self.readiness.at(self.now, &service.base).await;
        }
        (self.liveness.sent - before.0, self.readiness.sent - before.1)
    }
}
