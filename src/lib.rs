//! The entry point of an `AgentArea` deployment: clients publish **events** and start durable
//! **executions** over connections that are built once, reused by every request, watched, and
//! closed cleanly.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | connection | one of the three managed dependencies: event broker, execution service, database |
//! | family | the trait a connection offers to the program |
//! | backend | one implementation of a family, chosen by name |
//! | factory, registry | builds one backend from its own section; the table of a family's factories |
//! | managed connection | the slot that builds its backend once, hands it out, probes, replaces and closes it |
//! | guard | the one path of every request/response call to a backend; one pass is an *attempt* |
//! | checkout | the taking of a pooled connection, and the time for which it is held |
//! | probe | the background health check of one connection |
//! | event | a `CloudEvents` 1.0 event |
//! | workflow, execution | a named thing that can be executed; one run of it |
//! | outbox, relay, lane | the table of accepted events; the task that delivers them; the unit that is claimed and kept in order |
//! | claim | a lane or an execution that one replica holds for a time, with a fencing number |
//! | hand over | deliver or start accepted work, until the backend acknowledges it |
//! | worker, runner | the process that runs our workflows on Temporal; the embedded executor |
//!
//! # Dependencies
//!
//! Each module uses only the modules to its left; `tests/architecture.rs` checks this:
//!
//! `tls, error, model → config → telemetry → tasks → connection → backends → manager → services, health →
//! api → lifecycle → app → cli → main`
//!
//! Nothing reads the environment after [`config::load`]; no module outside [`backends`] and [`app`]
//! names a concrete backend; the only process-wide globals are the allocator, the tracing
//! subscriber and the TLS provider.

pub mod api;
pub mod app;
pub mod backends;
pub mod cli;
pub mod config;
pub mod connection;
pub mod error;
pub mod health;
pub mod lifecycle;
pub mod manager;
pub mod model;
pub mod services;
#[cfg(test)]
mod simulation;
pub mod tasks;
pub mod telemetry;
pub mod tls;
