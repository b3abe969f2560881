//! The files of `deploy/`, on the real nginx and Prometheus, a simulated kubelet, and through an
//! upgrade.

#[cfg(feature = "postgres")]
mod kubernetes;
mod monitoring;
#[cfg(all(feature = "redis", feature = "postgres"))]
mod nginx;
#[cfg(all(feature = "redis", feature = "temporal", feature = "postgres", feature = "sqlite"))]
mod outages;
#[cfg(all(feature = "redis", feature = "postgres", feature = "sqlite"))]
mod upgrade;
