//! The backends. Only this module and `app` name a concrete one.
//!
//! A family is a folder: `mod.rs` holds its trait and the visible list of its backends, each
//! backend is one file (its `Config`, its `Factory`, its implementation), and `contract.rs` is the
//! test suite that every one of them must pass.

pub mod database;
pub mod event_broker;
pub mod execution_service;
#[cfg(any(feature = "postgres", feature = "redis", feature = "temporal"))]
mod login;
mod pool;

#[cfg(all(test, any(feature = "redis", feature = "temporal", feature = "postgres")))]
pub(crate) mod test_server;

/// The descriptor of a backend whose cargo feature (named like it) this build lacks.
#[cfg(not(all(
    feature = "redis",
    feature = "temporal",
    feature = "postgres",
    feature = "sqlite"
)))]
fn compiled_out(
    family: &'static str,
    name: &'static str,
    variables: &'static [crate::config::WellKnownVariable],
) -> crate::config::BackendDescriptor {
    crate::config::BackendDescriptor {
        family,
        name,
        variables,
        shared: false,
        example: "",
        table: crate::config::Table::CompiledOut { feature: name },
    }
}
