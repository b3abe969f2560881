//! Checks that a server keeps acknowledged data, as far as its settings are visible.

use std::collections::HashMap;

use super::link::Line;

/// Returns a note on the way in which the server may lose the stream; `None` if it keeps it well,
/// or hides its settings, as managed servers do.
pub(super) async fn what_it_may_lose(commands: &Line) -> Option<&'static str> {
    let evicts = setting(commands, "maxmemory-policy").await;
    let log = setting(commands, "appendonly").await;
    let log_to_disk = setting(commands, "appendfsync").await;
    note(evicts.as_deref(), log.as_deref(), log_to_disk.as_deref())
}

async fn setting(commands: &Line, name: &str) -> Option<String> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg(name);
    let answer = commands.query::<HashMap<String, String>>(&command).await;
    answer.ok()?.into_values().next()
}

/// Returns the worst weakness. A policy that evicts only expiring keys leaves the stream alone.
fn note(
    evicts: Option<&str>,
    log: Option<&str>,
    log_to_disk: Option<&str>,
) -> Option<&'static str> {
    if evicts.is_some_and(|policy| policy.starts_with("allkeys")) {
        return Some(
            "the server deletes the stream when its memory is full: set maxmemory-policy noeviction",
        );
    }
    match (log, log_to_disk) {
        (Some("no"), _) => Some(
            "a crash of the server loses events, of which those within outbox.replay_window are \
             sent again: set appendonly yes",
        ),
        (Some("yes"), Some("no")) => Some(
            "a power failure of the server loses events, of which those within \
             outbox.replay_window are sent again: set appendfsync everysec or always",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_setting_is_told_and_a_good_or_hidden_one_is_not() {
        for (evicts, log, log_to_disk, word) in [
            ("allkeys-lru", "no", "no", Some("noeviction")),
            ("volatile-lru", "no", "everysec", Some("appendonly yes")),
            ("noeviction", "yes", "no", Some("appendfsync")),
            ("noeviction", "yes", "everysec", None),
            ("volatile-ttl", "yes", "always", None),
        ] {
            let note = note(Some(evicts), Some(log), Some(log_to_disk));
            assert_eq!(note.is_some(), word.is_some(), "{note:?}");
            assert!(word.is_none_or(|word| note.unwrap().contains(word)), "{note:?}");
        }
        assert_eq!(note(None, None, None), None);
    }
}
