//! Acceptance of executions beside that of events, while neither goes any further.

use crate::{
    Bench, Comparison, DatabaseKind,
    comparison::in_pairs,
    figures::{ACCEPTED, Figures, P99, number},
    frontend::Frontend,
    load::Until,
    ours::{EVENTS, EXECUTIONS, Ours, Start},
    rows::CLIENTS,
    usage::Meter,
};

const SECONDS: u64 = 10;

pub(super) async fn compare(bench: &Bench, database: DatabaseKind) -> Comparison {
    let rounds = in_pairs(
        "held",
        bench.arguments.rounds,
        async || accept(bench, database, EXECUTIONS, "execution_service").await,
        async || accept(bench, database, EVENTS, "event_broker").await,
    );
    Comparison {
        name: "held".to_owned(),
        database,
        ours: "executions",
        peer: Some("events"),
        shares: &[ACCEPTED, P99],
        rounds: rounds.await,
    }
}

async fn accept(bench: &Bench, database: DatabaseKind, path: &'static str, held: &str) -> Figures {
    let temporal = Frontend::temporal().await;
    let ours = Ours::start(Start::new(database, &temporal.address)).await;
    ours.hold(held, true).await;
    let before = ours.delivered(held).await;
    let (lasts, clients) = (bench.arguments.lasts(SECONDS), bench.arguments.clients(CLIENTS));
    let meter = Meter::start(&ours.watched());
    let sent = ours.accept(path, clients, Until::Elapsed(lasts)).await;
    let used = meter.stop();
    assert!(ours.delivered(held).await <= before, "what was accepted is held");
    sent.figures().with_costs(&used, number(sent.succeeded))
}
