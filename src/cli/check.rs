//! `check`: tries every connection, without starting the service.

use clap::Args;
use serde::Serialize;

use super::{
    Format,
    screen::{Cell, Progress, Screen, Tone, table},
};
use crate::{
    app::App,
    config::Loaded,
    connection::Checked,
    error::{Error, ErrorKind},
    lifecycle::Exit,
    tls,
};

pub(super) const AFTER_HELP: &str = "\
Examples:
  agentarea-api check
  REDIS_URL=redis://redis:6379 agentarea-api check
  agentarea-api check --format json | jq -r '.connections[] | select(.ok | not).name'

All three connections are tried at the same time, including lazy ones, each for at most twice its
pool.connect_timeout plus its probe.timeout. The check changes nothing: it creates no table and runs
no execution. It can run beside a running service.

Exit codes: 0 all connections work, 69 one cannot be established or used, 76 a backend speaks
another protocol or version, or TLS fails, 77 a backend refuses the login or the login lacks rights,
78 the configuration has problems. The highest code wins.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The document that `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    connections: Vec<Line>,
}

/// One connection.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    backend: String,
    address: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
    duration_ms: u64,
}

impl From<&Checked> for Line {
    fn from(checked: &Checked) -> Self {
        let Checked { name, backend, address, result, took } = checked;
        let error = result.as_ref().err();
        let note = result.as_ref().ok().copied().flatten().map(str::to_owned);
        Self {
            name,
            backend: backend.clone(),
            address: address.clone(),
            ok: error.is_none(),
            class: error.map(|error| error.kind().as_str()),
            message: error.map(one_line).or(note),
            remedy: error.and_then(Error::remedy),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Messages of drivers can contain line breaks, which would break the table.
fn one_line(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn run(arguments: &Arguments, loaded: &Loaded, app: &App) -> anyhow::Result<Exit> {
    tls::install_provider();
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let mut progress = Progress::new();
    progress.begin("trying every connection …");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let checked = runtime.block_on(app.check(&loaded.config));
    drop(progress);
    // A connect to a server that does not answer must not delay the exit.
    runtime.shutdown_background();
    let lines: Vec<Line> = checked.iter().map(Line::from).collect();
    let text = match arguments.format {
        Format::Text => in_columns(Screen::new(&loaded.sources), &lines),
        Format::Json => {
            let report = Report { ok: lines.iter().all(|line| line.ok), connections: lines };
            super::document(&report)?
        }
    };
    super::print(&text)?;
    Ok(exit(&checked))
}

/// The highest exit code: failures that waiting may cure have lower codes than those it cannot.
fn exit(checked: &[Checked]) -> Exit {
    let errors = checked.iter().filter_map(|checked| checked.result.as_ref().err());
    let exits = errors.map(|error| match error.kind() {
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => Exit::NotPermitted,
        ErrorKind::Incompatible | ErrorKind::Tls => Exit::NotUnderstood,
        _ => Exit::ConnectionUnavailable,
    });
    exits.max_by_key(|exit| exit.code()).unwrap_or(Exit::Clean)
}

/// The remedy is on a line of its own below the result.
fn in_columns(screen: Screen, lines: &[Line]) -> String {
    let mut rows = Vec::new();
    for line in lines {
        let result = match (line.class, &line.message) {
            (Some(class), Some(message)) => Cell::new(Tone::Bad, format!("{class}: {message}")),
            (None, Some(note)) => Cell::new(Tone::Good, format!("ok: {note}")),
            _ => Cell::new(Tone::Good, "ok"),
        };
        let took = format!("{} ms", line.duration_ms);
        let [backend, address] = [&line.backend, &line.address].map(|text| text.clone().into());
        rows.push([line.name.into(), backend, address, took.into(), result]);
        if let Some(remedy) = line.remedy {
            let mut row: [Cell; 5] = Default::default();
            row[4] = Cell::new(Tone::Warning, format!("-> {remedy}"));
            rows.push(row);
        }
    }
    table(screen, ["CONNECTION", "BACKEND", "ADDRESS", "TIME", "RESULT"], Some(3), rows)
}
