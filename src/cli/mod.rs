//! The command line.

mod check;
mod config;
mod health;
mod key;
mod migrate;
mod openapi;
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    app::App,
    config::{ConfigError, Loaded, Sources, load},
    lifecycle::Exit,
};

const AFTER_HELP: &str = "\
Without a command, `serve` runs. Without configuration it runs alone: memory broker, embedded
executions, SQLite in ./data. REDIS_URL, TEMPORAL_ADDRESS and DATABASE_URL connect it to Redis,
Temporal and PostgreSQL; `config show` tells what is in effect and why.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 69 a connection that start needs cannot be
made, 71 the port cannot be listened on, 75 stopped but something was cut off, 78 the configuration
has problems, 130 asked to stop twice. `check` has more, see its help.";

/// The front door of an `AgentArea` deployment: events and durable executions over managed
/// connections.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct Source {
    /// Folder with default.toml and {ENVIRONMENT}.toml [default: config, if it exists]
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Set a key, over every file and variable; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = parse_override)]
    overrides: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (the default)
    Serve,
    /// Run the configured workflows on Temporal
    #[cfg(feature = "worker")]
    Worker,
    /// Try every connection, without starting the service
    #[command(after_help = check::AFTER_HELP)]
    Check(check::Arguments),
    /// Move all that an embedded database holds into the configured one
    #[command(after_help = migrate::AFTER_HELP)]
    Migrate(migrate::Arguments),
    /// Look at the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Make API keys
    #[command(subcommand)]
    Key(key::Command),
    /// Print the `OpenAPI` specification
    Openapi,
    /// Ask a running service for its health; exit code 0 if it answers below 400
    Health(health::Arguments),
}

fn parse_override(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Source {
    fn load(self, app: &App) -> Result<Loaded, ConfigError> {
        load(&Sources::capture(self.config_dir, self.overrides), &app.descriptors())
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub fn run(self) -> anyhow::Result<Exit> {
        let app = App::default();
        let command = self.command.unwrap_or(Command::Serve);
        match command {
            Command::Config(command) => return config::run(&command, self.source, &app),
            Command::Key(command) => return key::run(command),
            Command::Openapi => return openapi::run(&app),
            _ => {}
        }
        let loaded = match self.source.load(&app) {
            Ok(loaded) => loaded,
            Err(problems) => return Ok(report(&problems)),
        };
        match command {
            Command::Check(arguments) => check::run(&arguments, &loaded, &app),
            Command::Health(arguments) => health::run(&arguments, &loaded.config),
            Command::Migrate(arguments) => migrate::run(&arguments, &loaded, &app),
            #[cfg(feature = "worker")]
            Command::Worker => serve::worker(app, loaded),
            _ => serve::serve(app, loaded),
        }
    }
}

/// Prints to standard output. A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write};
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Prints what is wrong with the configuration.
fn report(problems: &ConfigError) -> Exit {
    eprintln!("{problems}");
    Exit::BadConfig
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
