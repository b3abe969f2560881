//! `key new`.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use crate::{
    api::{self, NewKey},
    lifecycle::Exit,
};

/// The variable that holds all keys.
const VARIABLE: &str = "AGENTAREA_AUTH__KEYS";

const AFTER_HELP: &str = "\
The service stores only the key's SHA-256; the key itself is shown once, here.

Examples:
  agentarea-api key new --name ci --scopes read,write
  agentarea-api key new --format env --key-file api_key >> .env
  agentarea-api key new --format json --key-file api_key | jq -r .keys

With --format env, standard output has the line of the configuration and never the key, which goes
to standard error, or with --key-file to a new file that only its owner can read. `keys` in the
JSON document is the value of AGENTAREA_AUTH__KEYS without quotes, as Kubernetes Secrets need it.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a key and its line for the configuration
    #[command(after_help = AFTER_HELP)]
    New {
        /// Name of the holder in logs
        #[arg(long, default_value = "default")]
        name: String,
        /// Scopes of the key
        #[arg(long, value_delimiter = ',', default_value = "read,write,operate")]
        #[arg(value_parser = ["read", "write", "operate"])]
        scopes: Vec<String>,
        /// Output format
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// Write the key into FILE, which must not exist yet, and do not print it
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// The line for .env; the key goes to standard error
    Env,
    /// For scripts: one JSON document, and nothing else on standard output
    Json,
}

pub(super) fn run(command: Command) -> anyhow::Result<Exit> {
    let Command::New { name, scopes, format, key_file } = command;
    let NewKey { key, sha256 } = api::new_key();
    if let Some(path) = &key_file {
        write(path, &key).with_context(|| format!("--key-file {}", path.display()))?;
    }
    let shown = key_file.is_none().then_some(key);
    // The line is in single quotes, so it must not contain any.
    let quoted = serde_json::to_string(&name)?.replace('\'', "\\u0027");
    let listed = serde_json::to_string(&scopes)?;
    let keys = format!("[{{ name = {quoted}, sha256 = \"{sha256}\", scopes = {listed} }}]");
    let text = match format {
        Format::Text => {
            let table = format!("name = {quoted}\n  sha256 = \"{sha256}\"\n  scopes = {listed}");
            for_people(shown.as_deref(), &table, &keys)
        }
        Format::Env => {
            if let Some(key) = shown {
                eprintln!("{key}");
            }
            format!("{VARIABLE}='{keys}'\n")
        }
        Format::Json => {
            let mut document =
                json!({"name": name, "scopes": scopes, "sha256": sha256, "keys": keys});
            if let Some(key) = shown {
                document["key"] = key.into();
            }
            super::document(&document)?
        }
    };
    super::print(&text)?;
    Ok(Exit::Clean)
}

fn for_people(key: Option<&str>, table: &str, keys: &str) -> String {
    let shown = key.map_or_else(String::new, |key| {
        format!(
            "The key, shown this once; callers send `Authorization: Bearer KEY`:\n\n  {key}\n\n"
        )
    });
    format!(
        "{shown}For config/{{ENVIRONMENT}}.toml:\n\n  \
         [[auth.keys]]\n  \
         {table}\n\n\
         Or, with all keys in one list, for the environment or .env:\n\n  \
         {VARIABLE}='{keys}'\n"
    )
}

/// An existing file may hold a key that is in use.
fn write(path: &Path, key: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{key}")
}
