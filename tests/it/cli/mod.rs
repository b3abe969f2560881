//! The output of the commands, and the end of the program.

mod check;
mod commands;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod migrate;
mod shutdown;
