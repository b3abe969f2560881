//! A backlog that is started while nothing is accepted.

use std::{cell::Cell, time::Duration};

use tokio::time::sleep;

use crate::{
    Bench, Comparison, DatabaseKind,
    comparison::in_pairs,
    figures::{Figures, STARTED, number},
    frontend::Frontend,
    load::Until,
    ours::{EXECUTIONS, Ours, Start, reaches},
    rows::CLIENTS,
    usage::Meter,
};

const COUNT: usize = 20_000;
/// The pause for what acceptance leaves to do, such as checkpoints.
const SETTLE: Duration = Duration::from_secs(2);
/// Where the executions start.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Temporal,
    Stub,
}

impl To {
    async fn start(self, bench: &Bench) -> Frontend {
        match self {
            Self::Temporal => Frontend::temporal().await,
            Self::Stub => bench.peers.stub(None).await,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Temporal => "drain",
            Self::Stub => "stub",
        }
    }
}

pub(super) async fn compare(bench: &Bench, database: DatabaseKind, to: To) -> Comparison {
    // The loop ends after a time, not after a number of starts. Its own rate in the round before,
    // or first ours, gives about the same number.
    let rate = Cell::new(None);
    let rounds = in_pairs(
        to.name(),
        bench.arguments.rounds,
        async || {
            let ours = ours(bench, database, to).await;
            rate.set(rate.get().or(ours.get(STARTED)));
            ours
        },
        async || the_loop(bench, to, &rate).await,
    );
    Comparison {
        name: to.name().to_owned(),
        database,
        ours: "ours",
        peer: Some("Go loop"),
        shares: &[STARTED],
        rounds: rounds.await,
    }
}

async fn ours(bench: &Bench, database: DatabaseKind, to: To) -> Figures {
    let frontend = to.start(bench).await;
    let ours = Ours::start(Start::new(database, &frontend.address)).await;
    ours.hold("execution_service", true).await;
    let (count, clients) = (bench.arguments.count(COUNT), bench.arguments.clients(CLIENTS));
    let sent = ours.accept(EXECUTIONS, clients, Until::Succeeded(count)).await;
    sleep(SETTLE).await;
    let meter = Meter::start(&[ours.watched(), vec![frontend.watched()]].concat());
    ours.hold("execution_service", false).await;
    let first = reaches(number(count), async || ours.started().await).await;
    let used = meter.stop();
    Figures::default()
        .with(STARTED, number(count) / used.seconds)
        .with("starts", number(count))
        .with("seconds until the first", first)
        .with_failures(&sent)
        .with_costs(&used, number(count))
}

async fn the_loop(bench: &Bench, to: To, rate: &Cell<Option<f64>>) -> Figures {
    let frontend = to.start(bench).await;
    let rate_before = rate.get().expect("our side goes first in the first round");
    let lasts = Duration::from_secs_f64(number(bench.arguments.count(COUNT)) / rate_before);
    let meter = Meter::start(&[frontend.watched()]);
    let start_loop = bench.peers.start_loop(&frontend, CLIENTS, lasts).await;
    let used = meter.stop();
    rate.set(Some(start_loop.per_second));
    start_loop.figures().with_costs(&used, number(start_loop.requests))
}
