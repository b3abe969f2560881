//! What differs between two configurations.

use serde_json::Value;

use super::Loaded;

impl Loaded {
    /// The keys whose values differ in `new`, in order. Values are not given: they can be secrets.
    #[must_use]
    pub fn changed_keys(&self, new: &Self) -> Vec<String> {
        let of = |loaded: &Self| serde_json::to_value(&loaded.tree.root).unwrap_or_default();
        let mut keys = Vec::new();
        compare(&of(self), &of(new), "", &mut keys);
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
        let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        let none = &Value::Null;
        let (old, new) = (before.get(name).unwrap_or(none), after.get(name).unwrap_or(none));
        compare(old, new, &inner, keys);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changed_added_and_removed_keys_are_named() {
        let old = json!({"a": 1, "b": {"c": [1], "d": "x"}, "gone": {"e": true}});
        let new = json!({"a": 1, "b": {"c": [2], "d": "x"}, "new": 1});
        let mut keys = Vec::new();
        compare(&old, &new, "", &mut keys);
        assert_eq!(keys, ["b.c", "gone", "new"]);
    }
}
