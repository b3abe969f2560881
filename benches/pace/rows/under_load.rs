//! Executions that start while clients accept more at full speed.

use crate::{
    Bench, Comparison, DatabaseKind,
    comparison::in_pairs,
    figures::{ACCEPTED, Figures, P99, STARTED, number},
    frontend::Frontend,
    load::Until,
    ours::{EXECUTIONS, Ours, Start},
    rows::CLIENTS,
    usage::Meter,
};

const SECONDS: u64 = 20;

pub(super) async fn compare(bench: &Bench, database: DatabaseKind) -> Comparison {
    let rounds = in_pairs(
        "under-load",
        bench.arguments.rounds,
        async || ours(bench, database).await,
        async || with_the_loop(bench, database).await,
    );
    Comparison {
        name: "under-load".to_owned(),
        database,
        ours: "ours",
        peer: Some("Go loop, while ours accepts only"),
        shares: &[STARTED, ACCEPTED, P99],
        rounds: rounds.await,
    }
}

/// Our service accepts and starts.
async fn ours(bench: &Bench, database: DatabaseKind) -> Figures {
    let temporal = Frontend::temporal().await;
    let ours = Ours::start(Start::new(database, &temporal.address)).await;
    let lasts = bench.arguments.lasts(SECONDS);
    let meter = Meter::start(&[ours.watched(), vec![temporal.watched()]].concat());
    let clients = bench.arguments.clients(CLIENTS);
    let sent = ours.accept(EXECUTIONS, clients, Until::Elapsed(lasts)).await;
    let started = ours.started().await;
    let used = meter.stop();
    Figures::default()
        .with(STARTED, started / used.seconds)
        .with(ACCEPTED, sent.per_second())
        .with_latency(&sent)
        .with_cost(&used, "the service", number(sent.succeeded))
        .with_cost(&used, "the database", number(sent.succeeded))
        .with_cost(&used, "Temporal", started)
        .with_machine(&used)
}

/// Our service accepts only, and the Go loop starts.
async fn with_the_loop(bench: &Bench, database: DatabaseKind) -> Figures {
    let temporal = Frontend::temporal().await;
    let ours = Ours::start(Start::new(database, &temporal.address)).await;
    ours.hold("execution_service", true).await;
    let lasts = bench.arguments.lasts(SECONDS);
    let clients = bench.arguments.clients(CLIENTS);
    let meter = Meter::start(&[ours.watched(), vec![temporal.watched()]].concat());
    let (sent, start_loop) = tokio::join!(
        ours.accept(EXECUTIONS, clients, Until::Elapsed(lasts)),
        bench.peers.start_loop(&temporal, CLIENTS, lasts),
    );
    let used = meter.stop();
    assert!(ours.started().await <= 0.0, "what was accepted is held");
    let figures = Figures::default()
        .with(STARTED, start_loop.per_second)
        .with(ACCEPTED, sent.per_second())
        .with_latency(&sent)
        .with_cost(&used, "the service", number(sent.succeeded))
        .with_cost(&used, "the database", number(sent.succeeded))
        .with_cost(&used, "Temporal", number(start_loop.requests));
    start_loop.cost(figures).with_machine(&used)
}
