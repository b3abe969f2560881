//! `migrate`: from the embedded database to the configured one.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{app::App, config::Loaded, lifecycle::Exit, tls};

pub(super) const AFTER_HELP: &str = "\
Executions with their results, idempotency keys and undelivered events move from the file to the
configured database, in parcels, each of which is removed from the file once it is committed there. If
it is interrupted, call it again. Stop the service that uses the file first.

Exit codes: 0 everything has moved, 1 something failed, 69 the configured database cannot be used,
78 the configuration has problems.";

/// How often to tell how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where from, such as `sqlite:data/agentarea.db`
    #[arg(long, value_name = "sqlite:PATH", value_parser = parse_from)]
    from: PathBuf,
}

fn parse_from(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("sqlite:").ok_or("expected sqlite:PATH")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() { Err("expected sqlite:PATH".to_owned()) } else { Ok(path.into()) }
}

pub(super) fn run(arguments: &Arguments, loaded: &Loaded, app: &App) -> anyhow::Result<Exit> {
    tls::install_provider();
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let mut told = Instant::now();
    let progress = |rows| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            eprintln!("{rows} rows have moved");
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let moved = runtime.block_on(app.migrate(&loaded.config, &arguments.from, progress));
    runtime.shutdown_background();
    let (rows, from) = (moved?, arguments.from.display());
    super::print(&format!("everything in {from} has moved, {rows} rows\n"))?;
    Ok(Exit::Clean)
}
