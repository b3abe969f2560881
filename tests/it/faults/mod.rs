//! The promises that hold while processes, servers, links, disks, clocks and input fail.

pub(crate) mod awkward;
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite"))]
mod chaos;
#[cfg(feature = "sqlite")]
mod clock;
#[cfg(feature = "sqlite")]
mod disk;
#[cfg(all(feature = "redis", feature = "worker", feature = "postgres"))]
mod distance;
#[cfg(any(feature = "redis", feature = "temporal", feature = "postgres"))]
mod network;
mod outbox;
#[cfg(all(feature = "sqlite", feature = "temporal"))]
mod throttled;
