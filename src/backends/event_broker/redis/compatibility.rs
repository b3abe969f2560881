//! Checks that a server is suitable for the stream.

use super::{config::Mode, link::Line};
use crate::error::{Error, ErrorKind};

/// The first version that can read a stream from after an id.
const OLDEST_SERVER: (u32, u32) = (6, 2);

/// Refuses a server that is too old or of another kind than configured.
pub(super) async fn check_server(commands: &Line, mode: Mode) -> Result<(), Error> {
    let asked = commands.query::<String>(redis::cmd("INFO").arg("server")).await;
    let information = match asked {
        Ok(information) => information,
        // A login that may not query the server may still use the stream.
        Err(error) if error.kind() == ErrorKind::Forbidden => return Ok(()),
        Err(error) => return Err(error),
    };
    let value = |name| information.lines().find_map(|line| line.strip_prefix(name));
    if let (Mode::Standalone, Some("cluster")) = (mode, value("redis_mode:")) {
        let message = "the server is part of a cluster: set mode = \"cluster\"";
        let remedy = "set event_broker.redis.mode = \"cluster\"";
        return Err(Error::new(ErrorKind::Incompatible, message).with_remedy(remedy));
    }
    check_version(value("redis_version:").unwrap_or_default())
}

/// A server without a readable version, such as some with a compatible protocol, is accepted.
fn check_version(version: &str) -> Result<(), Error> {
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let (oldest, minor) = OLDEST_SERVER;
    match (parts.next(), parts.next()) {
        (Some(a), Some(b)) if (a, b) < OLDEST_SERVER => Err(Error::new(
            ErrorKind::Incompatible,
            format!("the server is version {version}, older than {oldest}.{minor}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_too_old_is_refused_by_its_version() {
        for version in ["6.0.16", "5.0.7", "6.1.240"] {
            let error = check_version(version).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            assert!(error.to_string().contains(&format!("{version}, older than 6.2")), "{error}");
        }
        for version in ["6.2.0", "7.0.15", "10.1", "255.255.255", "", "unknown"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
    }
}
