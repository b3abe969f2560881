//! `config show`, `config check`, `config schema`, `config default`, `config docs`.

use std::ffi::OsStr;

use clap::{Args, Subcommand, builder::TypedValueParser, error::ErrorKind};
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
Checks files and variables only; `agentarea-api check` tries the connections.

Examples:
  ENVIRONMENT=production agentarea-api config check

Exit codes: 0 it is valid, 78 it has problems, each reported with its place.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every effective value with its source, secrets masked
    #[command(after_help = SHOW_HELP)]
    Show(Show),
    /// Report all problems, without starting the service
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
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Reads `KEY=VALUE`. clap's usual message would repeat the argument, which can be a secret.
#[derive(Clone, Copy, Debug)]
pub(super) struct Override;

impl TypedValueParser for Override {
    type Value = (String, String);

    fn parse_ref(
        &self,
        command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let parts = value.to_str().and_then(|text| text.split_once('='));
        let (key, value) = parts.ok_or_else(|| {
            let message = "--set needs KEY=VALUE, such as --set server.port=8080";
            command.clone().error(ErrorKind::ValueValidation, message)
        })?;
        Ok((key.trim().to_owned(), value.to_owned()))
    }
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
        _ => format!("the configuration for {:?} is valid\n", loaded.config.environment),
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
