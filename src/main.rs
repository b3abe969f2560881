//! From the command line to the exit code.

use std::process::ExitCode;

use agentarea_api::{cli::Cli, lifecycle::Exit};
use clap::Parser;

fn main() -> ExitCode {
    let exit = Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("agentarea-api: {error:#}");
        Exit::Failed
    });
    ExitCode::from(exit.code())
}
