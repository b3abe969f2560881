//! The real program, started as an operator starts it, against real servers. `tests/README.md` says
//! which promise each test proves.
//!
//! One binary for all integration tests, because linking is slow.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[cfg_attr(
    not(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite")),
    expect(dead_code, unused_imports, reason = "a narrow build has fewer tests")
)]
#[path = "../support/mod.rs"]
mod support;

mod api;
mod backends;
mod cli;
mod deploy;
mod faults;
