//! The layers merged by figment, whose tags identify the origin of each value.

use std::{collections::BTreeMap, fmt};

use figment::{
    Figment,
    value::{Dict, Tag, Value},
};

use super::{
    keys::lineage,
    layer::{Layer, Origin},
    problem::{Place, Places},
    values::SecretFromFile,
};

/// The effective configuration as a tree of values that know their origin.
#[derive(Clone)]
pub struct Tree {
    /// The merged values, with the secrets read from files.
    root: Value,
    /// Knows the metadata of each tag.
    figment: Figment,
    origins: Vec<Origin>,
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
    /// Merges the layers; later ones win.
    pub(super) fn merge<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Self {
        let (mut figment, mut origins) = (Figment::new(), Vec::new());
        for layer in layers {
            figment = figment.merge(layer);
            origins.push(layer.origin.clone());
        }
        let root = figment.find_value("").expect("every layer is a table");
        Self { root, figment, origins, secret_files: BTreeMap::new() }
    }

    /// The whole tree.
    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// The whole tree, without origins.
    pub(super) fn to_json(&self) -> serde_json::Value {
        to_json(&self.root)
    }

    /// The value at `key`, which may be in a list.
    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.root, |value, part| match value {
            Value::Dict(_, entries) => entries.get(part),
            Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// Stores the content of the file that `file_key` names as the value of `key`, with the origin
    /// of `file_key`.
    pub(super) fn put_secret(&mut self, key: &str, file_key: &str, secret: SecretFromFile) {
        let Some(tag) = self.take(file_key).map(|path| path.tag()) else { return };
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let Some(entries) = self.table_mut(table) else { return };
        entries.insert(name.to_owned(), secret.into_value(tag));
        self.secret_files.insert(key.to_owned(), file_key.to_owned());
    }

    /// Takes out the value at `key`.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        self.table_mut(table)?.remove(name)
    }

    fn table_mut(&mut self, table: &str) -> Option<&mut Dict> {
        let mut parts = table.split('.').filter(|part| !part.is_empty());
        parts.try_fold(entries_mut(&mut self.root)?, |entries, part| {
            entries_mut(entries.get_mut(part)?)
        })
    }

    /// Where the value at `key` was written; for a missing one, where its table was.
    #[must_use]
    pub fn place(&self, key: &str) -> Option<Place> {
        let (found, value) = lineage(key).find_map(|key| Some((key, self.find(key)?)))?;
        let written = self.secret_files.get(found).map_or(found, String::as_str);
        Some(self.origin(value)?.place(written))
    }

    /// The origin of a value. figment tags a table with the last layer that has the table,
    /// whichever values that layer sets. So the origin of a table is the first origin of a value in
    /// it, and the program only if there is no other.
    fn origin(&self, value: &Value) -> Option<&Origin> {
        let entries = value.as_dict().filter(|entries| !entries.is_empty());
        let Some(entries) = entries else { return self.origin_of(value.tag()) };
        let mut inside = entries.values().filter_map(|value| self.origin(value));
        let first = inside.next()?;
        let mut all = std::iter::once(first).chain(inside);
        Some(all.find(|origin| !origin.is_compiled()).unwrap_or(first))
    }

    /// figment keeps no lines, so the origin is found by its metadata.
    fn origin_of(&self, tag: Tag) -> Option<&Origin> {
        let metadata = self.figment.get_metadata(tag)?;
        self.origins.iter().find(|origin| origin.metadata() == *metadata)
    }
}

impl Places for Tree {
    fn place(&self, key: &str) -> Option<Place> {
        Self::place(self, key)
    }
}

/// The entries of a table.
pub(super) fn entries_mut(value: &mut Value) -> Option<&mut Dict> {
    match value {
        Value::Dict(_, entries) => Some(entries),
        _ => None,
    }
}

/// A value without its origin.
pub(super) fn to_json(value: &Value) -> serde_json::Value {
    serde_json::to_value(value).expect("a value of the configuration has a JSON form")
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
        assert_eq!(tree.to_json(), json!({"a": {"x": 1, "y": 5, "list": [2]}}));
        let line = |line| Some(Place::File { path: "/etc/f.toml".into(), line: Some(line) });
        assert_eq!(tree.place("a.x"), Some(Place::Default));
        assert_eq!(tree.place("a.y"), line(3));
        assert_eq!(tree.place("a.list.0"), line(1));
        assert_eq!(tree.place("a"), line(1), "the program does not stand in for a file");
        assert_eq!(Tree::merge([&default, &file, &set]).place("a.x"), Some(Place::CommandLine));
        assert_eq!(tree.place("b"), None);
    }

    #[test]
    fn figment_names_each_layer_by_its_place() {
        let file = |path: &str| Origin::File { path: path.into(), lines: BTreeMap::new() };
        let variable = |file: Option<&str>| Origin::Variable {
            name: "AGENTAREA_A__X".to_owned(),
            file: file.map(Into::into),
        };
        let layers = [
            (Origin::Default, "compiled default"),
            (Origin::ProductionDefault, "compiled default for production"),
            (file("/etc/default.toml"), "/etc/default.toml"),
            (file("/etc/production.toml"), "/etc/production.toml"),
            (variable(Some(".env")), "AGENTAREA_A__X (.env)"),
            (variable(None), "AGENTAREA_A__X"),
            (Origin::CommandLine, "command line"),
        ]
        .map(|(origin, name)| (Layer::single(origin, "a.x", json!(name)), name));
        for last in 1..=layers.len() {
            let tree = Tree::merge(layers[..last].iter().map(|(layer, _)| layer));
            let (layer, name) = &layers[last - 1];
            assert_eq!(tree.find("a.x").and_then(Value::as_str), Some(*name));
            assert_eq!(tree.figment.find_metadata("a.x").unwrap().name, *name);
            assert_eq!(tree.place("a.x"), Some(layer.origin.place("a.x")));
        }
    }

    #[test]
    fn a_secret_of_a_file_has_the_place_of_the_file_s_name() {
        let lines = BTreeMap::from([("a.key_file".to_owned(), 4)]);
        let origin = Origin::File { path: "/etc/f.toml".into(), lines };
        let default = Layer { origin: Origin::Default, root: json!({"a": {"key": "x"}}) };
        let file = Layer { origin, root: json!({"a": {"key_file": "key"}}) };
        let mut tree = Tree::merge([&default, &file]);
        let secret = SecretFromFile { value: "hunter2".to_owned(), file: "/run/key".into() };
        tree.put_secret("a.key", "a.key_file", secret);
        let expected = json!({"a": {"key": {"value": "hunter2", "file": "/run/key"}}});
        assert_eq!(tree.to_json(), expected);
        let line = Some(Place::File { path: "/etc/f.toml".into(), line: Some(4) });
        assert_eq!(tree.place("a.key"), line);
    }
}
