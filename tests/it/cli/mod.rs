//! What the command line says, and how the program ends.

mod check;
mod commands;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod migrate;
mod shutdown;
