//! The merged values, each with the place it was written.

use std::{collections::HashMap, fmt, fs, path::Path};

use figment::{
    Figment, Source,
    value::{Tag, Value},
};

use super::{problem::Place, values::SecretFromFile};

/// The name under which a layer is registered with figment, read back to tell the place.
pub(super) const COMMAND_LINE: &str = "command line";
pub(super) const PRODUCTION_DEFAULTS: &str = "defaults of production";
pub(super) const DOTENV_SEPARATOR: &str = " in ";

/// The effective configuration as a tree of values that know their origin.
#[derive(Clone)]
pub struct Tree {
    pub(super) root: Value,
    figment: Figment,
    files: HashMap<std::path::PathBuf, String>,
}

// Values and files hold secrets.
impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tree(…)")
    }
}

impl Tree {
    /// Merges the layers of `figment`; none if one of them cannot be read.
    pub(super) fn merge(figment: Figment) -> Option<Self> {
        let root: Value = figment.extract().ok()?;
        let files = figment
            .metadata()
            .filter_map(|metadata| metadata.source.as_ref()?.file_path())
            .filter_map(|path| Some((path.to_owned(), fs::read_to_string(path).ok()?)))
            .collect();
        Some(Self { root, figment, files })
    }

    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.root, |value, part| child(value, part))
    }

    /// Puts what was read from the file that `file_key` names in the place of `key`. Its origin is
    /// that of the file's name.
    pub(super) fn put_secret(&mut self, key: &str, file_key: &str, secret: &SecretFromFile) {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut target = &mut self.root;
        for part in table.split('.').filter(|part| !part.is_empty()) {
            let Value::Dict(_, dict) = target else { return };
            let Some(inner) = dict.get_mut(part) else { return };
            target = inner;
        }
        let Value::Dict(_, dict) = target else { return };
        let file_name = file_key.rsplit('.').next().unwrap_or(file_key);
        let Some(tag) = dict.remove(file_name).map(|value| value.tag()) else { return };
        let text = |text: &str| Value::String(tag, text.to_owned());
        let parts = [
            ("value".to_owned(), text(&secret.value)),
            ("file".to_owned(), text(&secret.file.to_string_lossy())),
        ];
        dict.insert(name.to_owned(), Value::Dict(tag, parts.into_iter().collect()));
    }

    /// Where the value at `key` was written; for a missing one, where its table was.
    #[must_use]
    pub fn place(&self, key: &str) -> Option<Place> {
        let mut path: Vec<&str> = key.split('.').collect();
        while !path.is_empty() {
            if let Some(value) = self.find(&path.join(".")) {
                return self.place_of_tag(leaf_tag(value)?, &path);
            }
            path.pop();
        }
        None
    }

    fn place_of_tag(&self, tag: Tag, path: &[&str]) -> Option<Place> {
        let metadata = self.figment.get_metadata(tag)?;
        Some(match &metadata.source {
            Some(Source::File(file)) => {
                let line = self.files.get(file).and_then(|text| line_of(text, path));
                Place::File { path: display_path(file), line }
            }
            Some(Source::Code(_)) | None if metadata.name == COMMAND_LINE => Place::CommandLine,
            Some(Source::Custom(variable)) => match variable.split_once(DOTENV_SEPARATOR) {
                Some((name, file)) => {
                    Place::Variable { name: name.to_owned(), file: Some(file.into()) }
                }
                None => Place::Variable { name: variable.clone(), file: None },
            },
            _ if metadata.name == PRODUCTION_DEFAULTS => Place::ProductionDefault,
            _ => Place::Default,
        })
    }
}

/// A path as an operator would write it: relative to where the program runs, if below it.
pub(super) fn display_path(path: &Path) -> std::path::PathBuf {
    let shorter = std::env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf))
        .unwrap_or_else(|| path.to_path_buf());
    shorter.strip_prefix("./").map(Path::to_path_buf).unwrap_or(shorter)
}

fn child<'a>(value: &'a Value, part: &str) -> Option<&'a Value> {
    match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    }
}

/// A table has no origin of its own once layers are merged: that of its first value stands in.
fn leaf_tag(value: &Value) -> Option<Tag> {
    match value {
        Value::Dict(_, dict) => dict.values().find_map(leaf_tag).or(Some(value.tag())),
        _ => Some(value.tag()),
    }
}

/// The line of `path` in a TOML text; figment keeps no positions.
fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let document = toml_edit::ImDocument::parse(text).ok()?;
    let mut table: &dyn toml_edit::TableLike = document.as_table();
    let mut start = None;
    for part in path {
        let Some((key, item)) = table.get_key_value(part) else { break };
        start = key.span().or(item.span()).map(|span| span.start);
        match item.as_table_like() {
            Some(inner) => table = inner,
            None => break,
        }
    }
    start.map(|offset| text[..offset].bytes().filter(|byte| *byte == b'\n').count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_key_is_found_in_nested_tables() {
        let text = "# comment\n[a]\nx = 1\n\n[a.b]\ny = 2\ninline = { z = 3 }\n";
        assert_eq!(line_of(text, &["a", "x"]), Some(3));
        assert_eq!(line_of(text, &["a", "b", "y"]), Some(6));
        assert_eq!(line_of(text, &["a", "b", "inline", "z"]), Some(7));
    }
}
