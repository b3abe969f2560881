//! Real servers and the links to them, for unit tests, integration tests and benchmarks alike.
//!
//! `scripts/servers` starts the servers that tests share and sets variables with their addresses; a
//! test that stops, freezes or empties a server starts its own on a free port. Everything here ends
//! when it is dropped, except a [`Database`], whose `drop` must be awaited.

#[cfg(feature = "postgres")]
mod database;
mod distance;
mod environment;
mod link;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "temporal")]
mod temporal;
mod wait;

#[cfg(feature = "redis")]
pub(crate) use self::redis::Redis;
#[cfg(feature = "temporal")]
pub(crate) use self::temporal::Temporal;
#[cfg(feature = "postgres")]
pub(crate) use self::{database::Database, postgres::Postgres};
pub(crate) use self::{
    distance::{away, rtt, small_pool},
    environment::{certificate, variable},
    link::{Link, Passing},
    process::{Process, free_port, listens, signal},
    wait::{DEADLINE, eventually},
};
