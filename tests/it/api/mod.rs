//! What a client and an operator are promised over HTTP.

mod auth;
mod events;
mod executions;
mod health;
mod http;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod idempotency_keys;
pub(crate) mod operator;
// Its certificates come from `scripts/servers`, as everything that no build without servers needs.
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
mod tls;
#[cfg(feature = "otel")]
mod traces;
