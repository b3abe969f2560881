//! Tests on the production backends, and with each pool and database.

#[cfg(all(feature = "redis", feature = "worker", feature = "postgres"))]
pub(crate) mod fleet;
#[cfg(feature = "postgres")]
mod locks;
#[cfg(feature = "sqlite")]
mod pool;
#[cfg(feature = "redis")]
mod redis;
