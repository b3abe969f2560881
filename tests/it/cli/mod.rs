//! What the command line and the documents say, and how the program ends.

mod check;
mod commands;
// The documents are those of a build with everything.
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite"))]
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod migrate;
mod shutdown;
