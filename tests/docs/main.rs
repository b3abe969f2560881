//! Runs every command that `README.md`, `CONTRIBUTING.md` and `docs/` show, and compares what it prints
//! with what the page shows below it.
//!
//! The words after the language of a fence say where its commands run:
//!
//! | marks | the commands run |
//! |---|---|
//! | none | beside a service on embedded defaults |
//! | `servers` | beside a service and a worker on Redis, Temporal and `PostgreSQL` |
//! | `production` | the same with `ENVIRONMENT=production`; the API key is `$KEY` |
//! | `shell` | in a folder with the shipped `config/`, without a service |
//! | `second` | in a second shell, which stays busy |
//! | `eventually` | repeatedly, until the output matches the page |
//! | `build`, `cluster`, `docker`, `internet`, `operator`, `systemd` | not at all: see [`exist::NEEDS`] |
//!
//! Blocks of `text` are compared with the log of the service (`log`), of the worker (`log worker`)
//! or with what the second shell prints (`second`, after Ctrl-C with `interrupt`); a `drawing` is
//! not compared. The program must accept the configuration in `toml` blocks, which is used for the
//! stage if one is named. An untested block is an error, and so is an unknown mark.
//!
//! `WRITE_DOCS=1 cargo test --test docs` updates the pages with the current output of the commands.

#![cfg(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite"))]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod agent;
mod compare;
mod exist;
mod facts;
mod links;
mod pages;
mod play;
#[expect(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../support/servers/mod.rs"]
mod servers;
mod shell;
mod stage;

/// One test for each page, so that pages run side by side and fail by name.
macro_rules! pages {
    ($($test:ident: $page:literal,)*) => {
        $(#[test]
        fn $test() {
            play::page($page);
        })*

        #[test]
        fn every_page_is_tested() {
            assert_eq!(pages::names(), [$($page),*]);
        }
    };
}

pages! {
    contributing: "CONTRIBUTING.md",
    readme: "README.md",
    index: "docs/README.md",
    api: "docs/api.md",
    architecture: "docs/architecture.md",
    authentication: "docs/authentication.md",
    backends: "docs/backends.md",
    command_line: "docs/command-line.md",
    configuration: "docs/configuration.md",
    deployment: "docs/deployment.md",
    development_to_production: "docs/development-to-production.md",
    embedding: "docs/embedding.md",
    events: "docs/events.md",
    executions: "docs/executions.md",
    health: "docs/health.md",
    monitoring: "docs/monitoring.md",
    operating: "docs/operating.md",
    outages: "docs/outages.md",
    performance: "docs/performance.md",
    production: "docs/production.md",
    testing: "docs/testing.md",
    tour: "docs/tour.md",
    troubleshooting: "docs/troubleshooting.md",
}
