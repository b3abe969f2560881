//! Processor time, from Linux.

use std::{fs, time::Instant};

use crate::figures::number;

/// Clock ticks of `/proc`, on every machine that Linux runs on.
const TICKS_A_SECOND: f64 = 100.0;

/// A process whose time is measured, with those that it has started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    pub(crate) name: &'static str,
    pub(crate) id: u32,
}

/// A running measurement.
pub(crate) struct Meter {
    begin: Instant,
    watched: Vec<(Watched, u64)>,
    own: u64,
    machine: Machine,
}

/// The result of a measurement.
pub(crate) struct Spent {
    /// How long it took.
    pub(crate) seconds: f64,
    processes: Vec<(&'static str, f64)>,
    /// The time of this process as a share of one core.
    pub(crate) own: f64,
    /// The share of the machine's processors that had nothing to do.
    pub(crate) idle: f64,
}

impl Meter {
    pub(crate) fn start(watched: &[Watched]) -> Self {
        let watched = watched.iter().map(|&watched| (watched, ticks(watched.id))).collect();
        let (own, machine) = (own_ticks(std::process::id()), Machine::now());
        Self { begin: Instant::now(), watched, own, machine }
    }

    pub(crate) fn stop(self) -> Spent {
        let seconds = self.begin.elapsed().as_secs_f64();
        let processes = self.watched.iter().map(|(watched, before)| {
            (watched.name, number(ticks(watched.id).saturating_sub(*before)) / TICKS_A_SECOND)
        });
        let own = number(own_ticks(std::process::id()) - self.own) / TICKS_A_SECOND / seconds;
        let idle = self.machine.idle_until(&Machine::now());
        Spent { seconds, processes: processes.collect(), own, idle }
    }
}

impl Spent {
    /// The seconds of a process.
    pub(crate) fn seconds_of(&self, process: &str) -> Option<f64> {
        self.processes.iter().find_map(|(name, seconds)| (*name == process).then_some(*seconds))
    }

    /// The time of a process as a share of one core.
    pub(crate) fn share_of_a_core(&self, process: &str) -> f64 {
        self.seconds_of(process).unwrap_or_default() / self.seconds
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &'static str> {
        self.processes.iter().map(|(name, _)| *name)
    }
}

/// The ticks of all processors.
struct Machine {
    idle: u64,
    all: u64,
}

impl Machine {
    fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").expect("Linux");
        let line = stat.lines().next().unwrap_or_default();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests count as users.
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() }
    }

    fn idle_until(&self, later: &Self) -> f64 {
        number(later.idle - self.idle) / number(later.all - self.all).max(1.0)
    }
}

/// The process that started this one.
pub(crate) fn parent(id: u32) -> u32 {
    let parent = u32::try_from(field(&stat(id), 1));
    parent.expect("a process has a parent")
}

/// The ticks of a process, of its children, and of those that it had.
fn ticks(id: u32) -> u64 {
    let stat = stat(id);
    let ended = field(&stat, 13) + field(&stat, 14);
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    own_ticks(id) + ended + children.map(ticks).sum::<u64>()
}

fn own_ticks(id: u32) -> u64 {
    let stat = stat(id);
    field(&stat, 11) + field(&stat, 12)
}

fn stat(id: u32) -> String {
    fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default()
}

/// A number of `/proc/ID/stat`, counted from the field after the name, which may have spaces.
fn field(stat: &str, index: usize) -> u64 {
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    fields.split_whitespace().nth(index).and_then(|field| field.parse().ok()).unwrap_or(0)
}
