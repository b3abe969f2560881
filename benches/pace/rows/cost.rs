//! The processor time of one execution in the service, from the request to its start.

use crate::{
    Bench, Comparison, DatabaseKind,
    comparison::in_pairs,
    figures::{Figures, STARTED, number},
    load::Until,
    ours::{EXECUTIONS, Ours, Start, reaches},
    rows::CLIENTS,
    usage::Meter,
};

const SECONDS: u64 = 15;
const COST: &str = "CPU of the service, µs each";

pub(super) async fn compare(bench: &Bench, database: DatabaseKind) -> Comparison {
    let rounds = in_pairs(
        "cost",
        bench.arguments.rounds,
        async || ours(bench, database).await,
        async || peer(bench).await,
    );
    Comparison {
        name: "cost".to_owned(),
        database,
        ours: "ours",
        peer: Some("Go peer"),
        shares: &[COST, STARTED],
        rounds: rounds.await,
    }
}

/// Includes the time after the last request in which the rest is started.
async fn ours(bench: &Bench, database: DatabaseKind) -> Figures {
    let stub = bench.peers.stub(None).await;
    let ours = Ours::start(Start::new(database, &stub.address)).await;
    let (lasts, clients) = (bench.arguments.lasts(SECONDS), bench.arguments.clients(CLIENTS));
    let meter = Meter::start(&[ours.watched(), vec![stub.watched()]].concat());
    let sent = ours.accept(EXECUTIONS, clients, Until::Elapsed(lasts)).await;
    let count = number(sent.succeeded);
    reaches(count, async || ours.started().await).await;
    let used = meter.stop();
    Figures::default()
        .with(STARTED, count / used.seconds)
        .with_latency(&sent)
        .with_costs(&used, count)
}

/// Each request is answered after its start.
async fn peer(bench: &Bench) -> Figures {
    let stub = bench.peers.stub(None).await;
    let peer = bench.peers.http_peer(&stub).await;
    let (lasts, clients) = (bench.arguments.lasts(SECONDS), bench.arguments.clients(CLIENTS));
    let meter = Meter::start(&[peer.watched(), stub.watched()]);
    let sent = peer.start(clients, Until::Elapsed(lasts)).await;
    let used = meter.stop();
    Figures::default()
        .with(STARTED, sent.per_second())
        .with_latency(&sent)
        .with_costs(&used, number(sent.succeeded))
}
