//! The real program, started as an operator starts it, against real servers.
//!
//! One binary for all integration tests, because linking one is slow enough.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod support;

mod api_auth;
mod api_events;
mod api_executions;
mod api_http;
mod awkward;
mod check;
mod cli;
mod health;
#[cfg(feature = "redis")]
mod ledger;
mod monitoring;
mod operator;
mod outbox;
#[cfg(feature = "sqlite")]
mod pool;
mod shutdown;
#[cfg(feature = "otel")]
mod traces;

#[cfg(feature = "redis")]
mod backend_redis;
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite"))]
mod chaos;
#[cfg(feature = "sqlite")]
mod clock;
#[cfg(feature = "sqlite")]
mod disk;
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
mod faults;
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres"))]
mod fleet;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod keys;
#[cfg(feature = "postgres")]
mod kubelet;
#[cfg(feature = "postgres")]
mod locks;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod migrate;
#[cfg(all(feature = "redis", feature = "temporal", feature = "postgres", feature = "sqlite"))]
mod outages;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod proxy;
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres"))]
mod servers;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod upgrade;
// Its certificates come from `scripts/servers`, as everything that no build without servers needs.
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
mod tls;
