//! The JSON schema of the whole configuration: the one source of keys, types, limits, defaults and
//! documentation.

use serde_json::{Map, Value, json};

use super::{
    Config,
    backend::{BackendDescriptor, Table, schema_of},
    keys::join,
    toml_text::parse_value,
};

/// The schema and the compiled defaults.
pub(super) struct RootSchema {
    schema: Value,
    defaults: Value,
}

impl RootSchema {
    /// Puts the backends' tables into the schema of [`Config`].
    pub(super) fn new(backends: &[BackendDescriptor]) -> Self {
        let mut schema = schema_of::<Config>();
        let mut defaults =
            serde_json::to_value(Config::default()).expect("the configuration has a JSON form");
        for backend in backends {
            let (table, default) = match &backend.table {
                Table::Known { schema, defaults, .. } => (schema.clone(), defaults.clone()),
                Table::CompiledOut { .. } => (json!({"type": "object"}), json!({})),
            };
            schema["properties"][backend.family]["properties"][backend.name] = table;
            defaults[backend.family][backend.name] = default;
        }
        for family in ["event_broker", "execution_service", "database"] {
            let names: Vec<&str> =
                backends.iter().filter(|b| b.family == family).map(|b| b.name).collect();
            schema["properties"][family]["properties"]["backend"]["enum"] = json!(names);
            defaults[family]["backend"] = json!(default_backend(family, backends));
        }
        add_defaults(&mut schema, &defaults);
        add_secret_files(&mut schema);
        Self { schema, defaults: strip_nulls(defaults) }
    }

    /// Compiled defaults.
    pub(super) fn defaults(&self) -> &Value {
        &self.defaults
    }

    /// Every key and table. Where names are free, the keys of the entries on the path of `key`: for
    /// a key in `workflows.call`, those of that workflow.
    pub(super) fn keys_near(&self, key: &str) -> Vec<String> {
        let path: Vec<&str> = key.split('.').collect();
        let mut keys = Vec::new();
        collect_keys(&self.schema, "", Some(&path), &mut keys);
        keys
    }

    /// The schema in the form in which the checks walk it.
    pub(super) fn root(&self) -> &Value {
        &self.schema
    }

    /// The schema in the form that editors expect.
    pub(super) fn document(&self) -> Value {
        let mut document = self.schema.clone();
        document["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        document["title"] = json!("agentarea-api configuration");
        document
    }

    /// The schema of `key`.
    pub(super) fn find(&self, key: &str) -> Option<&Value> {
        key.split('.').try_fold(&self.schema, |schema, part| {
            property(schema, part).or_else(|| match part.parse::<usize>() {
                Ok(_) => schema.get("items"),
                Err(_) => None,
            })
        })
    }

    /// Converts a variable's text to a value. It stays text where the schema expects text, so that
    /// a password of digits does not become a number; anything else is read as TOML.
    pub(super) fn parse_text(&self, key: &str, text: &str) -> Value {
        let wants_text = self.find(key).is_none_or(|schema| has_type(schema, "string"));
        if wants_text { Value::from(text) } else { parse_value(text) }
    }
}

/// The schema of the entry `name` of a table.
pub(super) fn property<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    schema
        .get("properties")
        .and_then(|properties| properties.get(name))
        .or_else(|| schema.get("additionalProperties").filter(|inner| inner.is_object()))
}

/// Whether values of `kind` are allowed.
pub(super) fn has_type(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::String(only) => only == kind,
        Value::Array(any) => any.iter().any(|one| one == kind),
        _ => allowed_values(schema).is_some() && kind == "string",
    }
}

/// The allowed values of an enumeration; schemars writes `oneOf` where variants have documentation.
pub(super) fn allowed_values(schema: &Value) -> Option<Vec<&str>> {
    if let Some(values) = schema["enum"].as_array() {
        return Some(values.iter().filter_map(Value::as_str).collect());
    }
    let variants = schema["oneOf"].as_array()?;
    Some(variants.iter().filter_map(|variant| variant["const"].as_str()).collect())
}

/// The default without configuration: a backend inside this process, if the build has one.
fn default_backend<'a>(family: &str, backends: &'a [BackendDescriptor]) -> Option<&'a str> {
    let known = || {
        backends
            .iter()
            .filter(|backend| backend.family == family)
            .filter(|backend| matches!(backend.table, Table::Known { .. }))
    };
    let inside = known().find(|backend| !backend.shared);
    inside.or_else(|| known().next()).map(|backend| backend.name)
}

// `IndexMut` would insert missing keys.
fn properties_mut(schema: &mut Value) -> Option<&mut Map<String, Value>> {
    schema.get_mut("properties")?.as_object_mut()
}

fn add_defaults(schema: &mut Value, defaults: &Value) {
    if let (Some(properties), Some(values)) = (properties_mut(schema), defaults.as_object()) {
        for (name, inner) in properties {
            add_defaults(inner, values.get(name).unwrap_or(&Value::Null));
        }
    }
    let object = schema.as_object_mut().expect("a schema is an object");
    if object.contains_key("properties") || defaults.is_null() {
        object.remove("default");
    } else {
        object.insert("default".to_owned(), defaults.clone());
    }
    // An enumeration's variants are described in the text of the key.
    if let Some(values) = allowed_values(&Value::Object(object.clone())).map(|v| json!(v)) {
        object.remove("oneOf");
        object.insert("enum".to_owned(), values);
        object.insert("type".to_owned(), json!("string"));
    }
}

/// Every secret can be given as a file.
fn add_secret_files(schema: &mut Value) {
    let Some(properties) = properties_mut(schema) else { return };
    let mut added = Map::new();
    for (name, inner) in properties.iter_mut() {
        if is_secret(inner) {
            let text = format!("File that holds `{name}`; its content is never logged.");
            added.insert(
                format!("{name}_file"),
                json!({"type": "string", "description": text, "x-secret-file": name}),
            );
        }
        add_secret_files(inner);
    }
    properties.extend(added);
}

/// Whether the value is never printed.
pub(super) fn is_secret(schema: &Value) -> bool {
    schema["x-secret"] == true
}

/// Walks the schema, following `near` where names are free; off that path `near` is `None`.
fn collect_keys(schema: &Value, prefix: &str, near: Option<&[&str]>, keys: &mut Vec<String>) {
    let (next, rest) = match near.and_then(<[&str]>::split_first) {
        Some((next, rest)) => (Some(*next), Some(rest)),
        None => (None, None),
    };
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let key = join(prefix, name);
        let near = rest.filter(|_| next == Some(name));
        collect_keys(inner, &key, near, keys);
        keys.push(key);
    }
    let is_free = |inner: &&Value| inner.is_object();
    let entries = schema.get("additionalProperties").or(schema.get("items")).filter(is_free);
    if let (Some(entry), Some(name)) = (entries, next) {
        collect_keys(entry, &join(prefix, name), rest, keys);
    }
}

/// TOML has no null: an absent value is left out.
fn strip_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, inner)| !inner.is_null())
                .map(|(name, inner)| (name, strip_nulls(inner)))
                .collect(),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_workflow_and_of_a_list_are_known_by_their_path() {
        let schema = RootSchema::new(&[]);
        let near = |key: &str| schema.keys_near(key);
        assert!(near("workflows.call.knid").contains(&"workflows.call.kind".to_owned()));
        let retry = "workflows.call.retry.max_attempts".to_owned();
        assert!(near("workflows.call.retry.tries").contains(&retry));
        assert!(near("auth.keys.0.nmae").contains(&"auth.keys.0.name".to_owned()));
        assert!(!near("server.prot").iter().any(|key| key.starts_with("workflows.")));
    }
}
