//! `migrate`: from the embedded database to the configured one.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Format, screen::Progress};
use crate::{
    app::{App, TargetUnusable},
    config::Loaded,
    lifecycle::Exit,
    telemetry, tls,
};

pub(super) const AFTER_HELP: &str = "\
Examples:
  DATABASE_URL=postgres://user:password@host/name agentarea-api migrate --from sqlite:data/agentarea.db

Executions with their results, idempotency keys and undelivered events move from the file to the
configured database in batches; each is removed from the file after it is committed there. If the
command is interrupted, run it again. First stop the service that uses the file.

Exit codes: 0 everything has moved, 1 something failed, 69 the configured database cannot be used,
78 the configuration has problems.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The embedded database to move from, such as `sqlite:data/agentarea.db`
    #[arg(long, value_name = "sqlite:PATH", value_parser = parse_from)]
    from: PathBuf,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Long steps before the first row moves, such as migrations of the schema, log their own
    // progress.
    let entered = runtime.enter();
    let logs = telemetry::init(&loaded.config.telemetry)?;
    let mut progress = Progress::new();
    let tell = |rows| progress.tell(&format!("{rows} rows have moved"));
    let moved = runtime.block_on(app.migrate(&loaded.config, &arguments.from, tell));
    drop((progress, logs, entered));
    runtime.shutdown_background();
    let rows = match moved {
        Ok(rows) => rows,
        Err(error) if error.is::<TargetUnusable>() => {
            eprintln!("agentarea-api: {error:#}");
            return Ok(Exit::ConnectionUnavailable);
        }
        Err(error) => return Err(error),
    };
    let from = arguments.from.display();
    let text = match arguments.format {
        Format::Text => format!("everything in {from} has moved, {rows} rows\n"),
        Format::Json => super::document(&json!({"from": from.to_string(), "rows": rows}))?,
    };
    super::print(&text)?;
    Ok(Exit::Clean)
}
