//! The effective values, each with its source.

use figment::value::Value;
use serde_json::Value as Schema;

use super::{
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
    pub json: Schema,
    /// Where it was written.
    pub place: Place,
}

/// Every effective value in the order of the keys.
pub(super) fn settings(tree: &Tree, schema: &RootSchema) -> Vec<Setting> {
    let mut list = Vec::new();
    collect(tree, schema.root(), &tree.root, "", &mut list);
    list
}

fn collect(tree: &Tree, schema: &Schema, value: &Value, key: &str, list: &mut Vec<Setting>) {
    let null = Schema::Null;
    if let Value::Dict(_, entries) = value
        && !is_secret(schema)
    {
        for (name, inner) in entries {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            collect(tree, property(schema, name).unwrap_or(&null), inner, &key, list);
        }
        return;
    }
    let json = if is_secret(schema) {
        mask(value).into()
    } else {
        serde_json::to_value(value).unwrap_or_default()
    };
    list.push(Setting {
        key: key.to_owned(),
        value: render(&json),
        json,
        place: tree.place(key).unwrap_or(Place::Default),
    });
}

/// A URL keeps what an operator needs to recognise it; its user and password do not show.
fn mask(value: &Value) -> String {
    let visible = value
        .as_str()
        .and_then(|text| text.parse::<reqwest::Url>().ok())
        .filter(reqwest::Url::has_host)
        .map(|url| {
            let credentials =
                if url.password().is_some() || !url.username().is_empty() { "***@" } else { "" };
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            let host = url.host_str().unwrap_or_default();
            format!("{}://{credentials}{host}{port}{}", url.scheme(), url.path())
        });
    visible.unwrap_or_else(|| "***".to_owned())
}

/// A JSON value as TOML writes it on one line.
pub(super) fn render(json: &Schema) -> String {
    match json {
        Schema::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key} = {}", render(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        Schema::Array(items) => {
            format!("[{}]", items.iter().map(render).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
