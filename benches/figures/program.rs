//! The program under measurement.

use std::{env, fs};

use serde_json::Value;
use tokio::task::yield_now;

use crate::{
    BARE,
    support::{Service, Setup},
};

/// Prepares the program as it is shipped, except for these variables.
pub(crate) fn setup(variables: &[(&str, &str)]) -> Setup {
    let set = |setup: Setup, (name, value): &(&str, &str)| setup.variable(name, value);
    variables.iter().fold(Setup::as_shipped(), set)
}

/// Starts the program and waits until it is ready.
pub(crate) async fn ready(variables: &[(&str, &str)]) -> Service {
    let service = setup(variables).start().await;
    service.ready().await;
    service
}

/// Starts this program a second time, to serve the bare handler.
pub(crate) async fn bare() -> Service {
    let program = env::current_exe().expect("this program has a path");
    Setup::as_shipped().program(&program).variable(BARE, "1").start().await
}

impl Service {
    /// Waits until it logs that it is ready; without a pause, because that time is a figure.
    pub(crate) async fn ready(&self) {
        while !self.log().contains(" ready") {
            yield_now().await;
        }
    }

    /// The processor time used so far, in clock ticks.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("Linux");
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        fields.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
    }

    pub(crate) fn rss_kib(&self) -> u64 {
        self.memory_kib("VmRSS")
    }

    /// Posts JSON; returns the status, or zero without an answer.
    pub(crate) async fn status_of(&self, path: &str, body: &Value) -> u16 {
        let answer = self.post(path).json(body).send().await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }
}
