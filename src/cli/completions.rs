//! `completions` and `man`, generated from the command line itself.

use std::path::PathBuf;

use clap::{Args, CommandFactory, error::ErrorKind};
use clap_complete::Shell;

use super::{Cli, print};
use crate::lifecycle::Exit;

pub(super) const COMPLETIONS_HELP: &str = "\
Examples:
  bash   agentarea-api completions bash > /etc/bash_completion.d/agentarea-api
  zsh    agentarea-api completions zsh > /usr/local/share/zsh/site-functions/_agentarea-api
  fish   agentarea-api completions fish > ~/.config/fish/completions/agentarea-api.fish";

pub(super) const MAN_HELP: &str = "\
Examples:
  agentarea-api man | man -l -                  read the page of the program
  agentarea-api man health | man -l -           read the page of a command
  agentarea-api man --dir /usr/local/share/man/man1";

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The command whose page to print, such as `config show` [default: the program]
    command: Vec<String>,
    /// Write the pages of the program and of all its commands into DIR
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(arguments: &Completions) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "agentarea-api", &mut script);
    // clap_complete 4.6 takes the hyphen in the program's name for the end of a command, in one of two
    // places that must agree in bash, so that no option would be completed.
    let script = String::from_utf8(script)?.replace("agentarea__subcmd__api", "agentarea__api");
    print(&script)?;
    Ok(Exit::Clean)
}

pub(super) fn man(arguments: &Man) -> anyhow::Result<Exit> {
    if let Some(dir) = &arguments.dir {
        clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| anyhow::anyhow!("{}: {error}", dir.display()))?;
        return Ok(Exit::Clean);
    }
    let mut command = Cli::command();
    command.build();
    for name in &arguments.command {
        let Some(found) = command.find_subcommand(name).cloned() else {
            let message = format!("there is no command {name:?}");
            Cli::command().error(ErrorKind::InvalidSubcommand, message).exit();
        };
        command = found;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print(&String::from_utf8(page)?)?;
    Ok(Exit::Clean)
}
