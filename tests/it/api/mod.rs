//! The promises of the HTTP API to clients and operators.

mod auth;
mod events;
mod executions;
mod health;
mod http;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod idempotency_keys;
pub(crate) mod operator;
// Its certificates come from `scripts/servers`.
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
mod tls;
#[cfg(feature = "otel")]
mod traces;
