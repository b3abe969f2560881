//! One layer of the configuration: the values from one file, one variable or the program itself. To
//! figment each layer is a [`Provider`] with its own [`Metadata`].

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use figment::{
    Error, Metadata, Profile, Provider,
    providers::Serialized,
    value::{Dict, Map},
};
use serde_json::Value;

use super::{
    keys::{join, lineage},
    problem::{Place, Places},
};

/// The origin of a layer.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// Compiled into the program.
    Default,
    /// Compiled into the program, for production only.
    ProductionDefault,
    /// A file, with the line of each key.
    File { path: PathBuf, lines: BTreeMap<String, usize> },
    /// A variable, from the environment or a `.env` file.
    Variable { name: String, file: Option<PathBuf> },
    /// The command line.
    CommandLine,
}

impl Origin {
    /// Where the value at `key` was written.
    pub(super) fn place(&self, key: &str) -> Place {
        match self {
            Self::Default => Place::Default,
            Self::ProductionDefault => Place::ProductionDefault,
            Self::File { path, lines } => {
                let line = lineage(key).find_map(|key| lines.get(key).copied());
                Place::File { path: display_path(path), line }
            }
            Self::Variable { name, file } => {
                Place::Variable { name: name.clone(), file: file.clone() }
            }
            Self::CommandLine => Place::CommandLine,
        }
    }

    /// True when the layer is compiled in.
    pub(super) fn is_compiled(&self) -> bool {
        matches!(self, Self::Default | Self::ProductionDefault)
    }

    /// The name of the layer in figment: the same as its place.
    pub(super) fn metadata(&self) -> Metadata {
        let metadata = Metadata::named(self.place("").to_string());
        match self {
            Self::File { path, .. } => metadata.source(path.as_path()),
            _ => metadata,
        }
    }
}

/// The values from one place.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    pub(super) root: Value,
}

impl Layer {
    /// A layer that sets one key. An empty part is kept and later reported as unknown;
    /// `figment::util::nest` would end the key there.
    pub(super) fn single(origin: Origin, key: &str, value: Value) -> Self {
        let nest = |value, part: &str| Value::from_iter([(part, value)]);
        Self { origin, root: key.rsplit('.').fold(value, nest) }
    }

    /// The value at `key`; a list is one value.
    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.root, |value, part| value.get(part))
    }

    /// Removes the value at `key`, or the whole list that it is in, because a list is one value.
    /// Returns the key that was removed.
    pub(super) fn remove<'k>(&mut self, key: &'k str) -> Option<&'k str> {
        let mut target = &mut self.root;
        let mut start = 0;
        for part in key.split('.') {
            let end = start + part.len();
            let entries = target.as_object_mut()?;
            if end == key.len() || entries.get(part).is_some_and(Value::is_array) {
                entries.remove(part)?;
                return Some(&key[..end]);
            }
            target = entries.get_mut(part)?;
            start = end + 1;
        }
        None
    }

    /// Every value that it sets; a list is one value.
    pub(super) fn leaves(&self) -> Vec<String> {
        let mut keys = Vec::new();
        collect_leaves(&self.root, "", &mut keys);
        keys
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.origin.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Serialized::defaults(&self.root).data()
    }
}

impl Places for Layer {
    fn place(&self, key: &str) -> Option<Place> {
        Some(self.origin.place(key))
    }
}

fn collect_leaves(value: &Value, key: &str, keys: &mut Vec<String>) {
    match value.as_object() {
        Some(entries) => {
            for (name, inner) in entries {
                collect_leaves(inner, &join(key, name), keys);
            }
        }
        None => keys.push(key.to_owned()),
    }
}

/// A path as an operator would write it: relative to the working directory, if it is below that.
pub(super) fn display_path(path: &Path) -> PathBuf {
    let shorter = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf))
        .unwrap_or_else(|| path.to_path_buf());
    shorter.strip_prefix("./").map(Path::to_path_buf).unwrap_or(shorter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_taken_out_as_a_whole() {
        let root = json!({"auth": {"keys": [{"name": "a"}], "mode": "none"}});
        let mut layer = Layer { origin: Origin::CommandLine, root };
        assert_eq!(layer.leaves(), ["auth.keys", "auth.mode"]);
        assert_eq!(layer.remove("auth.keys.0.name"), Some("auth.keys"));
        assert_eq!(layer.remove("auth.other"), None);
        assert_eq!(layer.leaves(), ["auth.mode"]);
    }

    #[test]
    fn an_empty_part_of_a_key_stays() {
        let layer = Layer::single(Origin::CommandLine, "a..b", json!(1));
        assert_eq!(layer.root, json!({"a": {"": {"b": 1}}}));
    }

    #[test]
    fn a_single_key_is_nested() {
        let layer = Layer::single(Origin::CommandLine, "a.b.c", json!(1));
        assert_eq!(layer.root, json!({"a": {"b": {"c": 1}}}));
        assert_eq!(layer.find("a.b.c"), Some(&json!(1)));
    }
}
