//! Measures how accepted work moves, from accepting it to its end, beside a bare Go loop:
//! `cargo bench --bench pace`. `docs/performance.md` says what each row means.
//!
//! Every row is measured in paired rounds on servers that are started for the round. Arguments
//! choose: `cargo bench --bench pace -- drain sqlite rounds=3 count=5000`.

mod arguments;
mod comparison;
mod delay;
mod figures;
mod frontend;
mod load;
mod ours;
mod peers;
mod report;
mod rows;
#[expect(dead_code, unused_imports, clippy::unwrap_used, reason = "the tests use the rest")]
#[path = "../../tests/support/mod.rs"]
mod support;
mod usage;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use self::{
    arguments::{Arguments, DatabaseKind, Row},
    comparison::Comparison,
    peers::{Peers, Programs},
    report::Report,
};

/// A benchmark run.
struct Bench {
    arguments: Arguments,
    peers: Peers,
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("{wrong}");
            return ExitCode::FAILURE;
        }
    };
    agentarea_api::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        tokio::select! {
            () = run(arguments) => ExitCode::SUCCESS,
            // What runs is dropped, which ends the servers.
            () = interrupted() => ExitCode::FAILURE,
        }
    })
}

async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be awaited");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be awaited");
    tokio::select! {
        _signal = terminate.recv() => {}
        _signal = interrupt.recv() => {}
    }
}

async fn run(arguments: Arguments) {
    let bench = Bench { arguments, peers: Peers::new(&Programs::from_environment()) };
    let mut report = Report::new(bench.arguments.json.clone());
    for &row in &bench.arguments.rows {
        let missing = bench.peers.missing(row);
        if missing.is_empty() {
            for &database in row.databases(&bench.arguments.databases) {
                rows::measure(&bench, row, database, &mut report).await;
            }
        } else {
            let (row, missing) = (row.name(), missing.join(", "));
            println!("left out: {row}, which needs {missing} in the folder PEERS_BIN\n");
        }
    }
    report.finish();
}

/// A variable of the environment of this benchmark.
#[expect(clippy::disallowed_methods, reason = "a benchmark is told where the programs are")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
