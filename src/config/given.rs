//! Decides which input messages and `config show` may repeat: nothing that may be a secret. A
//! password or a URL with one is easily written to the wrong key, where the schema does not mark it
//! as secret.

use std::path::Path;

/// Replaces text that messages do not repeat.
const HIDDEN: &str = "text that may be a secret";

/// Replaces a secret in `config show`.
pub(super) const MASK: &str = "***";

/// The longest text that is repeated: longer than any word the configuration knows, shorter than a
/// randomly generated secret.
const LONGEST: usize = 16;

/// The text as a message may show it: quoted if it is plainly harmless, otherwise replaced.
#[must_use]
pub fn given(text: &str) -> String {
    if text.len() <= LONGEST && is_plain(text) { format!("{text:?}") } else { HIDDEN.to_owned() }
}

/// The same for the path of a file, which has harmless words between its slashes.
pub(super) fn given_path(path: &str) -> String {
    let is_short = Path::new(path).is_absolute() || path.split('/').all(|s| s.len() <= LONGEST);
    if is_short && !path.contains("//") && path.split('/').all(is_plain) {
        format!("{path:?}")
    } else {
        HIDDEN.to_owned()
    }
}

/// The same for a key. An unknown key can be a value whose key was forgotten.
pub(super) fn given_key(key: &str) -> &str {
    if key.contains(['@', '?']) || key.contains("://") { "a key that may be a secret" } else { key }
}

/// The message of the TOML parser, reduced so that it repeats nothing of the file but key names.
pub(super) fn toml_message(message: &str) -> String {
    // The parser puts keys, and the characters it expects, between backquotes.
    let harmless = |quoted: &str| quoted.len() <= 3 || quoted.split('.').all(is_plain);
    if message.split('`').skip(1).step_by(2).all(harmless) {
        message.trim_end().replace('\n', ", ")
    } else {
        "is not valid TOML".to_owned()
    }
}

/// Whether the text has only letters, digits and signs that occur in keys and words.
pub(super) fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The value of a key that is not secret. A URL can still contain a password.
pub(super) fn without_credentials(text: &str) -> String {
    if text.contains(['@', '?', '#']) {
        masked_url(text).unwrap_or_else(|| MASK.to_owned())
    } else {
        text.to_owned()
    }
}

/// Keeps the parts by which an operator recognises the URL; user, password and parameters are
/// masked. Drivers parse URLs differently, so everything before the last `@` counts as user and
/// password. Returns `None` where even that is uncertain.
pub(super) fn masked_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (credentials, place) = match rest.rsplit_once('@') {
        Some((before, _)) if before.contains(['?', '#']) => return None,
        Some((_, place)) => ("***@", place),
        None => ("", rest),
    };
    let url: reqwest::Url = format!("{scheme}://{place}").parse().ok()?;
    let host = url.host_str()?;
    let usual = |c: char| c.is_ascii_alphanumeric() || "-_.:[]/".contains(c);
    if host.is_empty() || !host.chars().chain(url.path().chars()).all(usual) {
        return None;
    }
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let parameters = if url.query().is_some() || url.fragment().is_some() { "?***" } else { "" };
    Some(format!("{}://{credentials}{host}{port}{}{parameters}", url.scheme(), url.path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{app::App, config};

    #[test]
    fn a_loaded_configuration_has_no_debug_form_that_shows_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let text = "[workflows.call]\nkind = \"http\"\nurl = \"https://u:SECRET@h/?SECRET\"\n\
                    [event_broker.redis]\nnodes = [\"redis://u:SECRET@h:1\"]\n";
        std::fs::write(folder.path().join("config/default.toml"), text).unwrap();
        let variables = [
            ("AGENTAREA_DATABASE__POSTGRES__PASSWORD", "SECRET"),
            ("AGENTAREA_EXECUTION_SERVICE__TEMPORAL__ADDRESS", "http://u:SECRET@h:1"),
            ("AGENTAREA_TELEMETRY__LOG_FILTER", "info,redis://u:SECRET@h=info"),
        ];
        let sources = config::Sources {
            environment: variables.map(|(name, v)| (name.to_owned(), v.to_owned())).into(),
            working_dir: folder.path().to_owned(),
            ..config::Sources::default()
        };
        let loaded = config::load(&sources, &App::default().descriptors()).unwrap();
        let text = format!("{loaded:?} {:?}", loaded.settings());
        assert!(!text.contains("SECRET"), "{text}");
    }

    #[test]
    fn only_short_plain_text_is_repeated() {
        for harmless in ["", "kafka", "1GiB", "5", "when_authorized", "a-b.c"] {
            assert_eq!(given(harmless), format!("{harmless:?}"));
        }
        let key = "aa_5eRoVdxZkq0Qm3cF8yJt";
        for doubtful in ["a b", "u:p", "u@h", "p/w", "p\u{e4}ss", "x=y", "redis://h", key] {
            assert_eq!(given(doubtful), HIDDEN, "{doubtful:?}");
        }
    }

    #[test]
    fn a_path_is_repeated_and_what_is_none_is_not() {
        let long = "/run/secrets/a-name-that-is-long-as-names-go/url";
        for path in ["secret", "secrets/redis_url", "/run/secrets/url", "../x", long] {
            assert_eq!(given_path(path), format!("{path:?}"));
        }
        let key = "aa_5eRoVdxZkq0Qm3cF8yJt";
        for none in ["redis://u:p@h", "redis://h/1", "pa$s", "-----BEGIN KEY-----", key] {
            assert_eq!(given_path(none), HIDDEN, "{none:?}");
        }
    }

    #[test]
    fn a_url_shows_its_place_only_whoever_reads_it() {
        for (url, shown) in [
            ("postgres://h/x", Some("postgres://h/x")),
            ("postgres://u:SECRET@h:1/x", Some("postgres://***@h:1/x")),
            ("postgres://SECRET@h/x", Some("postgres://***@h/x")),
            ("postgres://u:12/SECRET@h/x", Some("postgres://***@h/x")),
            ("postgres://u:SEC@RET@h/x", Some("postgres://***@h/x")),
            ("postgres://h/x?password=SECRET", Some("postgres://h/x?***")),
            ("https://h/x#SECRET", Some("https://h/x?***")),
            ("https://[::1]:2/x", Some("https://[::1]:2/x")),
            ("redis://u:12#SECRET@h", None),
            ("redis://u:12?SECRET@h", None),
            ("redis://h?password=a@SECRET", None),
            ("postgres://u:SECRET/x", None),
            ("postgres://u:SECRET%40h/x", None),
            ("postgres://h;password=SECRET/x", None),
            ("postgres://h/x;password=SECRET", None),
            ("u:SECRET@x://h", None),
            ("postgres:///x@", None),
            ("u:SECRET@h", None),
            ("host=h password=SECRET", None),
        ] {
            assert_eq!(masked_url(url).as_deref(), shown, "{url}");
        }
    }

    #[test]
    fn a_parser_s_message_has_no_key_that_may_be_a_value() {
        let repeated = "duplicate key `port` in table `server.tls`";
        assert_eq!(toml_message(repeated), repeated);
        let expected = "invalid string\nexpected `\"`, `'`";
        assert_eq!(toml_message(expected), "invalid string, expected `\"`, `'`");
        let doubtful = "duplicate key `\"redis://u:SECRET@h\"` in document root";
        assert_eq!(toml_message(doubtful), "is not valid TOML");
    }
}
