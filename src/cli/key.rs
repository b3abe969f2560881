//! `key new`.

use clap::Subcommand;

use crate::{
    api::{self, NewKey},
    lifecycle::Exit,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key: print it once, and the line for the configuration
    New {
        /// Names the holder in logs
        #[arg(long, default_value = "default")]
        name: String,
        /// What the key may do
        #[arg(long, value_delimiter = ',', default_value = "read,write,operate")]
        #[arg(value_parser = ["read", "write", "operate"])]
        scopes: Vec<String>,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<Exit> {
    let Command::New { name, scopes } = command;
    let key = api::new_key();
    let (name, scopes) = (serde_json::to_string(&name)?, serde_json::to_string(&scopes)?);
    let NewKey { key, sha256 } = key;
    super::print(&format!(
        "The key, shown this once; callers send `Authorization: Bearer KEY`:\n\n  \
         {key}\n\n\
         For config/{{ENVIRONMENT}}.toml:\n\n  \
         [[auth.keys]]\n  \
         name = {name}\n  \
         sha256 = \"{sha256}\"\n  \
         scopes = {scopes}\n\n\
         Or, with all keys in one list, for the environment or .env:\n\n  \
         AGENTAREA_AUTH__KEYS='[{{ name = {name}, sha256 = \"{sha256}\", scopes = {scopes} }}]'\n"
    ))?;
    Ok(Exit::Clean)
}
