//! The merged values, each with the place it was written.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::{
    layer::{Layer, Origin, find, join, lineage},
    problem::{Place, Places},
    values::SecretFromFile,
};

/// The effective configuration as a tree of values that know their origin.
#[derive(Clone)]
pub struct Tree {
    pub(super) root: Value,
    origins: Vec<Origin>,
    /// Which of the origins wrote a value; a list is one value.
    writers: BTreeMap<String, usize>,
    /// The key that names the file of a secret, by the key of the secret.
    secret_files: BTreeMap<String, String>,
}

// Values hold secrets.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tree(…)")
    }
}

impl Tree {
    /// Puts the layers on top of each other; later wins.
    pub(super) fn merge<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Self {
        let mut tree = Self {
            root: Value::Object(Map::new()),
            origins: Vec::new(),
            writers: BTreeMap::new(),
            secret_files: BTreeMap::new(),
        };
        for (writer, layer) in layers.into_iter().enumerate() {
            tree.origins.push(layer.origin.clone());
            put(&mut tree.root, &layer.root, "", writer, &mut tree.writers);
        }
        tree
    }

    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        find(&self.root, key)
    }

    /// Puts what was read from the file that `file_key` names in the place of `key`. Its origin is
    /// that of the file's name.
    pub(super) fn put_secret(&mut self, key: &str, file_key: &str, secret: SecretFromFile) {
        let Some(writer) = self.take(file_key) else { return };
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let Some(entries) = self.table_mut(table) else { return };
        entries.insert(name.to_owned(), secret.into_value());
        self.writers.insert(key.to_owned(), writer);
        self.secret_files.insert(key.to_owned(), file_key.to_owned());
    }

    /// Takes out the value at `key`. Returns who wrote it.
    pub(super) fn take(&mut self, key: &str) -> Option<usize> {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        self.table_mut(table)?.remove(name)?;
        self.writers.remove(key)
    }

    fn table_mut(&mut self, table: &str) -> Option<&mut Map<String, Value>> {
        let mut parts = table.split('.').filter(|part| !part.is_empty());
        parts.try_fold(&mut self.root, |value, part| value.get_mut(part))?.as_object_mut()
    }

    /// Where the value at `key` was written; for a missing one, where its table was.
    #[must_use]
    pub fn place(&self, key: &str) -> Option<Place> {
        let found = lineage(key).find(|key| self.find(key).is_some())?;
        let writer = self.writer(found)?;
        let written = self.secret_files.get(found).map_or(found, String::as_str);
        Some(self.origins[writer].place(written))
    }

    /// Who wrote the value at `key`. A table has no writer of its own: the first who wrote a value
    /// in it stands in, and the program only if nobody else did.
    fn writer(&self, key: &str) -> Option<usize> {
        if let Some(writer) = lineage(key).find_map(|key| self.writers.get(key)) {
            return Some(*writer);
        }
        let below = format!("{key}.");
        let mut inside = self
            .writers
            .range(below.clone()..)
            .take_while(|(key, _)| key.starts_with(&below))
            .map(|(_, writer)| *writer);
        let first = inside.next()?;
        let mut all = std::iter::once(first).chain(inside);
        Some(all.find(|writer| !self.origins[*writer].is_compiled()).unwrap_or(first))
    }
}

impl Places for Tree {
    fn place(&self, key: &str) -> Option<Place> {
        Self::place(self, key)
    }
}

/// Puts `new` over `old`: tables are merged, all else replaces what was there.
fn put(
    old: &mut Value,
    new: &Value,
    key: &str,
    writer: usize,
    writers: &mut BTreeMap<String, usize>,
) {
    if let Value::Object(entries) = new {
        if !old.is_object() {
            writers.remove(key);
            *old = Value::Object(Map::new());
        }
        let Some(into) = old.as_object_mut() else { return };
        for (name, inner) in entries {
            let target = into.entry(name.as_str()).or_insert(Value::Null);
            put(target, inner, &join(key, name), writer, writers);
        }
        return;
    }
    if old.is_object() {
        let below = format!("{key}.");
        writers.retain(|key, _| !key.starts_with(&below));
    }
    writers.insert(key.to_owned(), writer);
    old.clone_from(new);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_layer_that_sets_a_value_is_its_place() {
        let default =
            Layer { origin: Origin::Default, root: json!({"a": {"x": 1, "y": 2, "list": [1]}}) };
        let lines = BTreeMap::from([("a".to_owned(), 1), ("a.y".to_owned(), 3)]);
        let origin = Origin::File { path: "/etc/f.toml".into(), lines };
        let file = Layer { origin, root: json!({"a": {"y": 5, "list": [2]}}) };
        let set = Layer::single(Origin::CommandLine, "a.x", json!(7));
        let tree = Tree::merge([&default, &file]);
        assert_eq!(tree.root, json!({"a": {"x": 1, "y": 5, "list": [2]}}));
        let line = |line| Some(Place::File { path: "/etc/f.toml".into(), line: Some(line) });
        assert_eq!(tree.place("a.x"), Some(Place::Default));
        assert_eq!(tree.place("a.y"), line(3));
        assert_eq!(tree.place("a.list.0"), line(1));
        assert_eq!(tree.place("a"), line(1), "the program does not stand in for a file");
        assert_eq!(Tree::merge([&default, &file, &set]).place("a.x"), Some(Place::CommandLine));
        assert_eq!(tree.place("b"), None);
    }
}
