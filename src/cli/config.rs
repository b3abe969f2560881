//! `config show`, `config check`, `config schema`, `config default`.

use clap::Subcommand;

use super::{Source, print, report};
use crate::{app::App, config, lifecycle::Exit};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print every effective value with its source, secrets masked
    Show,
    /// Report everything that is wrong, without starting
    Check,
    /// Print the JSON schema of the configuration files
    Schema,
    /// Print config/default.toml: every key with its documentation
    Default,
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
        Command::Show | Command::Check => {}
    }
    let loaded = match source.load(app) {
        Ok(loaded) => loaded,
        Err(problems) => return Ok(report(&problems)),
    };
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    if matches!(command, Command::Check) {
        print(&format!("the configuration for {:?} is good\n", loaded.config.environment))?;
        return Ok(Exit::Clean);
    }
    let mut text = format!("# ENVIRONMENT = {:?}\n", loaded.config.environment);
    let settings = loaded.settings().iter();
    text.extend(settings.map(|s| format!("{} = {}  # {}\n", s.key, s.value, s.place)));
    print(&text)?;
    Ok(Exit::Clean)
}
