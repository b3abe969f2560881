//! The addresses of the shared servers.

use std::path::PathBuf;

/// The value of a variable that `scripts/servers` sets.
///
/// # Panics
/// When it is missing: a test never passes because its server is not there.
#[expect(clippy::disallowed_methods, reason = "tests are told where the servers are")]
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run `scripts/servers start DIR` and `source DIR/env`, or \
             `scripts/test`, which does both"
        )
    })
}

/// A file of the certificates that `scripts/servers` creates. `ca.pem` signed `server.pem` (of this
/// machine), `elsewhere.pem` (of another host) and `client.pem`; `stranger.pem` signed none.
pub(crate) fn certificate(name: &str) -> PathBuf {
    PathBuf::from(variable("TEST_CERTIFICATES")).join(name)
}
