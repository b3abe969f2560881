//! `check`: tries every connection, without starting the service.

use std::fmt::Write;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    app::App,
    config::Loaded,
    connection::Checked,
    error::{Error, ErrorKind},
    lifecycle::Exit,
    tls,
};

pub(super) const AFTER_HELP: &str = "\
All three connections are tried at once, lazy ones too, each for at most twice its
pool.connect_timeout plus its probe.timeout. Nothing is changed: no table is made, no execution is
run. It works beside a running service.

Exit codes: 0 all connections work, 69 one cannot be made or used, 76 one answers in another
language: TLS fails or versions do not fit, 77 one refuses the login or forbids what is needed,
78 the configuration has problems. Of several, the highest.";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How to print what was found
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
}

/// What `--format json` prints.
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
            remedy: error.and_then(|error| error.kind().remedy()),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Drivers break their lines at will, which would break the table's.
fn one_line(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn run(arguments: &Arguments, loaded: &Loaded, app: &App) -> anyhow::Result<Exit> {
    tls::install_provider();
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let checked = runtime.block_on(app.check(&loaded.config));
    // What is still on its way to a server that does not answer must not hold up the end.
    runtime.shutdown_background();
    let lines: Vec<Line> = checked.iter().map(Line::from).collect();
    let text = match arguments.format {
        Format::Table => table(&lines),
        Format::Json => {
            let report = Report { ok: lines.iter().all(|line| line.ok), connections: lines };
            format!("{}\n", serde_json::to_string_pretty(&report)?)
        }
    };
    super::print(&text)?;
    Ok(exit(&checked))
}

/// The exit with the highest code: what waiting may cure has a lower one than what it does not.
fn exit(checked: &[Checked]) -> Exit {
    let errors = checked.iter().filter_map(|checked| checked.result.as_ref().err());
    let exits = errors.map(|error| match error.kind() {
        ErrorKind::Unauthenticated | ErrorKind::Forbidden => Exit::NotPermitted,
        ErrorKind::Incompatible | ErrorKind::Tls => Exit::NotUnderstood,
        _ => Exit::ConnectionUnavailable,
    });
    exits.max_by_key(|exit| exit.code()).unwrap_or(Exit::Clean)
}

/// Aligned columns; what to do stands in a line of its own below the result.
fn table(lines: &[Line]) -> String {
    let head = ["CONNECTION", "BACKEND", "ADDRESS", "TIME", "RESULT"].map(str::to_owned);
    let mut rows = vec![head];
    for line in lines {
        let result = match (line.class, &line.message) {
            (Some(class), Some(message)) => format!("{class}: {message}"),
            (None, Some(note)) => format!("ok: {note}"),
            _ => "ok".to_owned(),
        };
        let took = format!("{} ms", line.duration_ms);
        rows.push([line.name.to_owned(), line.backend.clone(), line.address.clone(), took, result]);
        if let Some(remedy) = line.remedy {
            let [name, backend, address, took] = [(); 4].map(|()| String::new());
            rows.push([name, backend, address, took, format!("-> {remedy}")]);
        }
    }
    let widths: [usize; 4] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    let mut text = String::new();
    for [name, backend, address, took, result] in &rows {
        let [a, b, c, d] = widths;
        // Writing to a string cannot fail.
        let _written =
            writeln!(text, "{name:a$}  {backend:b$}  {address:c$}  {took:>d$}  {result}");
    }
    text
}
