//! Acceptance on a database at a distance.

use std::time::Duration;

use crate::{
    Bench, Comparison, DatabaseKind, Report,
    comparison::in_pairs,
    figures::{ACCEPTED, Figures, P99, number},
    load::Until,
    ours::{EVENTS, EXECUTIONS, Ours, Start},
    usage::Meter,
};

const CLIENTS: usize = 128;
const SECONDS: u64 = 10;

pub(super) async fn compare(bench: &Bench, database: DatabaseKind, report: &mut Report) {
    for &round_trip in &bench.arguments.round_trips {
        for (what, path) in [("events", EVENTS), ("executions", EXECUTIONS)] {
            let name = format!("far, {what}, {} ms", round_trip.as_secs_f64() * 1e3);
            let rounds = in_pairs(
                &name,
                bench.arguments.rounds,
                async || accept(bench, database, path, Some(round_trip)).await,
                async || accept(bench, database, path, None).await,
            );
            let rounds = rounds.await;
            report.add(&Comparison {
                name,
                database,
                ours: "far",
                peer: Some("at loopback"),
                shares: &[ACCEPTED, P99],
                rounds,
            });
        }
    }
}

/// What is accepted goes on at once: events to the broker, executions to the stub of Temporal.
async fn accept(
    bench: &Bench,
    database: DatabaseKind,
    path: &'static str,
    round_trip: Option<Duration>,
) -> Figures {
    let stub = bench.peers.stub(None).await;
    let start = Start { round_trip, ..Start::new(database, &stub.address) };
    let ours = Ours::start(start).await;
    let round_trip_ms = ours.database_round_trip_ms().await.unwrap_or_default();
    let clients = bench.arguments.clients(CLIENTS);
    let meter = Meter::start(&ours.watched());
    let lasts = bench.arguments.lasts(SECONDS);
    let sent = ours.accept(path, clients, Until::Elapsed(lasts)).await;
    let used = meter.stop();
    let figures = sent.figures().with("round trip to the database, ms", round_trip_ms);
    figures.with_costs(&used, number(sent.succeeded))
}
