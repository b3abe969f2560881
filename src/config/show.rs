//! The effective values, each with its source.

use serde_json::Value;

use super::{
    given::{MASK, masked_url, without_credentials},
    keys::join,
    problem::Place,
    schema::{RootSchema, is_secret, property},
    tree::Tree,
};

/// One effective value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Its key.
    pub key: String,
    /// The value in TOML, or asterisks.
    pub value: String,
    /// The same in JSON.
    pub json: Value,
    /// Where it was written.
    pub place: Place,
}

/// Every effective value in the order of the keys.
pub(super) fn settings(tree: &Tree, schema: &RootSchema) -> Vec<Setting> {
    let mut list = Vec::new();
    collect(tree, schema.root(), &tree.to_json(), "", &mut list);
    list
}

fn collect(tree: &Tree, schema: &Value, value: &Value, key: &str, list: &mut Vec<Setting>) {
    let null = Value::Null;
    if let Value::Object(entries) = value
        && !is_secret(schema)
    {
        for (name, inner) in entries {
            let key = join(key, name);
            collect(tree, property(schema, name).unwrap_or(&null), inner, &key, list);
        }
        return;
    }
    // The table of a backend that this build lacks has no schema that says what is secret.
    let json = if is_secret(schema) || schema.is_null() {
        mask(key, value).into()
    } else {
        veil(value.clone())
    };
    list.push(Setting {
        key: key.to_owned(),
        value: render(&json),
        json,
        place: tree.place(key).unwrap_or(Place::Default),
    });
}

/// The address of a backend is shown without its password; any other secret is masked completely.
fn mask(key: &str, value: &Value) -> String {
    let address = value.as_str().filter(|_| key.ends_with("url"));
    address.and_then(masked_url).unwrap_or_else(|| MASK.to_owned())
}

/// A value that is not secret by its key can still contain a secret by mistake.
fn veil(json: Value) -> Value {
    match json {
        Value::String(text) => without_credentials(&text).into(),
        Value::Array(items) => items.into_iter().map(veil).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, veil(value))).collect(),
        other => other,
    }
}

/// A JSON value as TOML writes it on one line.
pub(super) fn render(json: &Value) -> String {
    match json {
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key} = {}", render(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(render).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{self, BackendDescriptor, Sources, Table};

    #[test]
    fn nothing_shows_of_a_table_that_the_build_does_not_know() {
        let elsewhere = BackendDescriptor {
            family: "database",
            name: "elsewhere",
            variables: &[],
            shared: true,
            example: "",
            table: Table::CompiledOut { feature: "elsewhere" },
        };
        let password = "AGENTAREA_DATABASE__ELSEWHERE__PASSWORD".to_owned();
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources {
            environment: [(password, "SECRET".to_owned())].into(),
            working_dir: folder.path().to_owned(),
            ..Sources::default()
        };
        let loaded = config::load(&sources, &[elsewhere]).unwrap();
        let of_table = |key: &str| key.starts_with("database.elsewhere");
        let shown: Vec<_> = loaded.settings().iter().filter(|one| of_table(&one.key)).collect();
        assert_eq!(shown.len(), 1);
        assert_eq!((shown[0].value.as_str(), shown[0].json.as_str()), ("\"***\"", Some("***")));
    }
}
