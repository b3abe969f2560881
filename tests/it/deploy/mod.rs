//! What `deploy/` ships, on the real nginx and Prometheus, by the rules of Kubernetes, over an upgrade.

#[cfg(feature = "postgres")]
mod kubernetes;
mod monitoring;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod nginx;
#[cfg(all(feature = "redis", feature = "temporal", feature = "postgres", feature = "sqlite"))]
mod outages;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod upgrade;
