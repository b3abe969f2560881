//! Differences between two configurations.

use serde_json::Value;

use super::{Loaded, keys::join};

impl Loaded {
    /// The keys whose values differ in `new`, in order, and `ENVIRONMENT` if it differs. Values are
    /// left out, because they can be secrets.
    #[must_use]
    pub fn changed_keys(&self, new: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        compare(&self.tree.to_json(), &new.tree.to_json(), "", &mut keys);
        if self.named_environment != new.named_environment {
            keys.push("ENVIRONMENT".to_owned());
        }
        keys.sort();
        keys
    }
}

fn compare(old: &Value, new: &Value, key: &str, keys: &mut Vec<String>) {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        if old != new {
            keys.push(key.to_owned());
        }
        return;
    };
    let added = after.keys().filter(|name| !before.contains_key(*name));
    for name in before.keys().chain(added) {
        let inner = join(key, name);
        let none = &Value::Null;
        let (old, new) = (before.get(name).unwrap_or(none), after.get(name).unwrap_or(none));
        compare(old, new, &inner, keys);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::config::{self, Sources};

    #[test]
    fn another_environment_waits_for_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
        fs::create_dir(folder.path().join("config")).unwrap();
        write("config/development.toml", "[server]\nport = 1\n");
        write("config/staging.toml", "[server]\nport = 2\n");
        write(".env", "ENVIRONMENT=development\n");
        let sources = Sources { working_dir: folder.path().to_owned(), ..Sources::default() };
        let started = config::load(&sources, &[]).unwrap();
        for text in ["", "ENVIRONMENT=' development '\n"] {
            write(".env", text);
            let same = config::reload(&started, &[]).unwrap();
            assert_eq!(started.changed_keys(&same), [""; 0], "{text:?}");
        }
        write(".env", "ENVIRONMENT=staging\n");
        let new = config::reload(&started, &[]).unwrap();
        assert_eq!((new.config.environment.as_str(), new.config.server.port), ("development", 1));
        assert_eq!(started.changed_keys(&new), ["ENVIRONMENT"]);
        write(".env", "ENVIRONMENT=../staging\n");
        assert!(config::reload(&started, &[]).is_err());
    }

    #[test]
    fn changed_added_and_removed_keys_are_named() {
        let old = json!({"a": 1, "b": {"c": [1], "d": "x"}, "gone": {"e": true}});
        let new = json!({"a": 1, "b": {"c": [2], "d": "x"}, "new": 1});
        let mut keys = Vec::new();
        compare(&old, &new, "", &mut keys);
        assert_eq!(keys, ["b.c", "gone", "new"]);
    }
}
