//! The command line.

mod check;
mod completions;
mod config;
mod health;
mod key;
mod migrate;
mod openapi;
mod screen;
mod serve;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    app::App,
    config::{ConfigError, Loaded, Sources, load},
    lifecycle::Exit,
};

/// The commit distinguishes two builds of the same version.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

const AFTER_HELP: &str = "\
Examples:
  agentarea-api                                    standalone, on embedded defaults, port 8000
  PORT=8080 agentarea-api                          on another port
  agentarea-api check                              try every connection, start nothing
  agentarea-api config show                        every value in effect, with its source
  agentarea-api health --watch                     follow the health of the service on this host
  agentarea-api key new --name ci --scopes read    create an API key

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 69 a connection that start needs cannot be
established, 71 the program cannot listen on the port, 75 stopped but something was cut off, 78 the
configuration has problems, 130 asked to stop twice. `check` has more; see its help.";

const ABOUT: &str = "\
The front door of an AgentArea deployment: events and durable executions over managed connections.";

const LONG_ABOUT: &str = "\
The front door of an AgentArea deployment: events and durable executions over managed connections.

Without a command, `serve` runs. With no configuration it runs standalone: memory broker, embedded \
executions, SQLite in ./data. REDIS_URL, TEMPORAL_ADDRESS and DATABASE_URL connect it to Redis, \
Temporal and PostgreSQL, each independently. ENVIRONMENT=production requires all three and an API \
key, and lists what is missing.";

/// The command line of the program.
#[derive(Debug, Parser)]
#[command(version = VERSION, about = ABOUT, long_about = LONG_ABOUT, after_help = AFTER_HELP)]
#[command(max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
struct Source {
    /// Folder with default.toml and {ENVIRONMENT}.toml [default: config, if it exists]
    ///
    /// The same as `AGENTAREA_CONFIG_DIR`. The folder must exist and contain one of the two files.
    #[arg(long, global = true, value_name = "DIR")]
    config_dir: Option<PathBuf>,
    /// Set a key, overriding every file and variable; may be repeated
    ///
    /// For example --set server.port=8080. `config default` prints all keys.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = config::Override)]
    overrides: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (the default)
    #[command(after_help = serve::SERVE_HELP)]
    Serve,
    /// Run the configured workflows on Temporal
    #[cfg(feature = "worker")]
    #[command(after_help = serve::WORKER_HELP)]
    Worker,
    /// Try every connection, without starting the service
    #[command(after_help = check::AFTER_HELP)]
    Check(check::Arguments),
    /// Ask a running service for its health
    #[command(after_help = health::AFTER_HELP)]
    Health(health::Arguments),
    /// Inspect the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Create API keys
    #[command(subcommand)]
    Key(key::Command),
    /// Move everything from an embedded database into the configured one
    #[command(after_help = migrate::AFTER_HELP)]
    Migrate(migrate::Arguments),
    /// Print the specification
    #[command(about = "Print the OpenAPI specification")]
    Openapi,
    /// Print shell completions
    #[command(after_help = completions::COMPLETIONS_HELP)]
    Completions(completions::Completions),
    /// Print the manual page
    #[command(after_help = completions::MAN_HELP)]
    Man(completions::Man),
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    /// For people
    #[default]
    #[value(alias = "table")]
    Text,
    /// For scripts: one JSON document, and nothing else on standard output
    Json,
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
    /// An error text for people.
    pub fn run(self) -> anyhow::Result<Exit> {
        let app = App::default();
        let command = self.command.unwrap_or(Command::Serve);
        match command {
            Command::Config(command) => return config::run(&command, self.source, &app),
            Command::Key(command) => return key::run(command),
            Command::Openapi => return openapi::run(&app),
            Command::Completions(arguments) => return completions::completions(&arguments),
            Command::Man(arguments) => return completions::man(&arguments),
            _ => {}
        }
        let loaded = match self.source.load(&app) {
            Ok(loaded) => loaded,
            Err(problems) => return Ok(report(&problems)),
        };
        match command {
            Command::Check(arguments) => check::run(&arguments, &loaded, &app),
            Command::Health(arguments) => health::run(&arguments, &loaded),
            Command::Migrate(arguments) => migrate::run(&arguments, &loaded, &app),
            #[cfg(feature = "worker")]
            Command::Worker => serve::worker(app, loaded),
            _ => serve::serve(app, loaded),
        }
    }
}

/// Prints to standard output. A reader that stops early, such as `head`, is not an error.
fn print(text: &str) -> anyhow::Result<()> {
    print_while_read(text).map(|_| ())
}

/// The same; false when the reader has gone.
fn print_while_read(text: &str) -> anyhow::Result<bool> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}

/// The one JSON document of `--format json`.
fn document(content: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(content)? + "\n")
}

/// Prints the problems of the configuration.
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

    /// The examples in the help of a command and its subcommands, without their descriptions.
    fn examples(command: &clap::Command, found: &mut Vec<String>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().filter(|line| line.starts_with("  ")) {
            let Some((_, call)) = line.split_once("agentarea-api") else { continue };
            let end = call.find(['|', '>']).unwrap_or(call.len());
            let end = call.find("   ").map_or(end, |comment| comment.min(end));
            found.push(call[..end].trim().to_owned());
        }
        command.get_subcommands().for_each(|command| examples(command, found));
    }

    #[test]
    fn the_examples_of_the_help_are_commands_that_exist() {
        let mut found = Vec::new();
        examples(&<Cli as clap::CommandFactory>::command(), &mut found);
        assert!(found.len() > 15, "{found:?}");
        for example in found {
            let words = std::iter::once("agentarea-api").chain(example.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{example:?}: {error}");
            }
        }
    }
}
