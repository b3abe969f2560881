//! `config show`, `config check`, `config schema`, `config default`, `config docs`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Format, Source, document, print, report};
use crate::{
    app::App,
    config::{self, Loaded},
    lifecycle::Exit,
};

const SHOW_HELP: &str = "\
Examples:
  agentarea-api config show | grep -v 'compiled default'
  agentarea-api config show --format json | jq -r '.settings[] | select(.key == \"server.port\").source'

Exit codes: 0 printed, 78 the configuration has problems.";

const CHECK_HELP: &str = "\
It looks at files and variables only; `agentarea-api check` tries the connections.

Examples:
  ENVIRONMENT=production agentarea-api config check

Exit codes: 0 it is good, 78 it has problems, each of which is named with its place.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every effective value with its source, secrets masked
    #[command(after_help = SHOW_HELP)]
    Show(Show),
    /// Report everything that is wrong, without starting
    #[command(after_help = CHECK_HELP)]
    Check,
    /// Print the JSON schema of the configuration files
    Schema,
    /// Print config/default.toml: every key with its documentation
    Default,
    /// Print docs/configuration.md: every key with its variable
    Docs,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// For whom to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(command: &Command, source: Source, app: &App) -> anyhow::Result<Exit> {
    match command {
        Command::Schema => {
            let schema = config::json_schema(&app.descriptors());
            print(&format!("{}\n", serde_json::to_string_pretty(&schema)?))?;
            return Ok(Exit::Clean);
        }
        Command::Default => {
            print(&config::default_file(&app.descriptors()))?;
            return Ok(Exit::Clean);
        }
        Command::Docs => {
            print(&config::reference(&app.descriptors()))?;
            return Ok(Exit::Clean);
        }
        Command::Show(_) | Command::Check => {}
    }
    let loaded = match source.load(app) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(report(&problems)),
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    let text = match command {
        Command::Show(Show { format: Format::Json }) => document(&settings(&loaded))?,
        Command::Show(_) => {
            let mut text = format!("# ENVIRONMENT = {:?}\n", loaded.config.environment);
            let settings = loaded.settings().iter();
            text.extend(settings.map(|s| format!("{} = {}  # {}\n", s.key, s.value, s.place)));
            text
        }
        _ => format!("the configuration for {:?} is good\n", loaded.config.environment),
    };
    print(&text)?;
    Ok(Exit::Clean)
}

fn settings(loaded: &Loaded) -> Value {
    let settings = loaded.settings().iter().map(|setting| {
        let source = setting.place.to_string();
        json!({"key": setting.key, "value": setting.json, "source": source})
    });
    json!({"environment": loaded.config.environment, "settings": settings.collect::<Vec<_>>()})
}
