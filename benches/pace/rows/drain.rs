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
/// The run of the loop before the first round.
const PILOT: Duration = Duration::from_secs(3);

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

    async fn rate_of_the_loop(self, bench: &Bench) -> f64 {
        let frontend = self.start(bench).await;
        bench.peers.start_loop(&frontend, CLIENTS, PILOT).await.per_second
    }
}

pub(super) async fn compare(bench: &Bench, database: DatabaseKind, to: To) -> Comparison {
    // The loop ends after a time, not after a number of starts. Its rate in the run before gives
    // about that number.
    let rate = Cell::new(to.rate_of_the_loop(bench).await);
    let rounds = in_pairs(
        to.name(),
        bench.arguments.rounds,
        async || ours(bench, database, to).await,
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

async fn the_loop(bench: &Bench, to: To, rate: &Cell<f64>) -> Figures {
    let frontend = to.start(bench).await;
    let lasts = Duration::from_secs_f64(number(bench.arguments.count(COUNT)) / rate.get());
    let meter = Meter::start(&[frontend.watched()]);
    let start_loop = bench.peers.start_loop(&frontend, CLIENTS, lasts).await;
    let used = meter.stop();
    rate.set(start_loop.per_second);
    start_loop.figures().with_costs(&used, number(start_loop.requests))
}
