//! Explains invalid input in the client's terms: the field or parameter, and the value that the
//! specification expects. The framework's own messages name its types instead.
//!
//! None of this runs for valid input.

use std::collections::BTreeMap;

use poem_openapi::{registry::Registry, types::Type};
use serde_json::{Value, json};

use crate::model::json::found;

/// The place of shared schemas in the specification.
const COMPONENTS: &str = "#/components/schemas/";

/// Schemas that refer to each other by name.
struct Schemas<'a>(&'a Value);

impl Schemas<'_> {
    /// Resolves `schema` if it refers to another one.
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix(COMPONENTS));
        name.map_or(schema, |name| &self.0[name])
    }

    /// Describes in words the value that a schema expects.
    fn expected(&self, schema: &Value) -> String {
        let schema = self.resolve(schema);
        if let Some(allowed) = schema["enum"].as_array() {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            return format!("one of {}", allowed.join(", "));
        }
        let what = match schema["type"].as_str() {
            Some("string") => "text",
            Some("integer") => "a whole number",
            Some("number") => "a number",
            Some("boolean") => "true or false",
            Some("array") => "a list",
            Some("object") => "an object",
            _ => "a value",
        };
        match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
            (Some(min), Some(max)) => format!("{what} from {min} to {max}"),
            (Some(min), None) => format!("{what}, at least {min}"),
            (None, Some(max)) => format!("{what}, at most {max}"),
            (None, None) => what.to_owned(),
        }
    }

    /// Finds the first mismatch in `value`, whose place in the body is `place`.
    fn misfit(&self, schema: &Value, value: &Value, place: &str) -> Option<String> {
        let schema = self.resolve(schema);
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(_)) => self.misfit_of_object(schema, value, place),
            (Some("array"), Value::Array(items)) => (0..).zip(items).find_map(|(index, item)| {
                let index: usize = index;
                self.misfit(&schema["items"], item, &format!("{place}[{index}]"))
            }),
            _ if fits(schema, value) => None,
            _ => {
                let (expected, found) = (self.expected(schema), found(value));
                Some(format!("{}: expected {expected}, found {found}", label(place)))
            }
        }
    }

    fn misfit_of_object(&self, schema: &Value, value: &Value, place: &str) -> Option<String> {
        let inside = |name: &str| match place {
            "" => name.to_owned(),
            place => format!("{place}.{name}"),
        };
        let required = || schema["required"].as_array().into_iter().flatten();
        let is_required = |name: &str| required().any(|required| required == name);
        let missing = required()
            .filter_map(Value::as_str)
            .find(|name| value.get(name).is_none())
            .map(|name| format!("{} is missing", label(&inside(name))));
        missing.or_else(|| {
            schema["properties"].as_object()?.iter().find_map(|(name, schema)| {
                let value = value.get(name)?;
                // An optional member may also be null.
                let absent = value.is_null() && !is_required(name);
                if absent { None } else { self.misfit(schema, value, &inside(name)) }
            })
        })
    }
}

/// True when a value has the schema's type and is one of its listed values. Ignores nested values.
fn fits(schema: &Value, value: &Value) -> bool {
    let typed = match schema["type"].as_str() {
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    typed && schema["enum"].as_array().is_none_or(|allowed| allowed.contains(value))
}

fn label(place: &str) -> String {
    if place.is_empty() { "the body".to_owned() } else { format!("`{place}`") }
}

/// Explains why a refused body is not a `T`, if its schema shows it.
pub(super) fn body<T: Type>(text: &[u8]) -> Option<String> {
    let value = &serde_json::from_slice(text).ok()?;
    let mut registry = Registry::new();
    T::register(&mut registry);
    let components = json!(registry.schemas);
    let schemas = Schemas(&components);
    let schema = json!(T::schema_ref());
    schemas
        .misfit(&schema, value, "")
        // All known members fit, so there must be an unknown one.
        .or_else(|| unknown(schemas.resolve(&schema), value))
}

fn unknown(schema: &Value, value: &Value) -> Option<String> {
    let known = schema["properties"].as_object()?;
    let name = value.as_object()?.keys().find(|name| !known.contains_key(*name))?;
    let mut known: Vec<String> = known.keys().map(|name| format!("`{name}`")).collect();
    // The order of maps depends on features of the build.
    known.sort();
    let name = found(&Value::String(name.clone()));
    Some(format!("the field {name} is unknown; there are {}", known.join(", ")))
}

/// The expected value of each parameter of each route, in words.
#[derive(Debug, Default)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Collects the parameters of a specification.
    pub(super) fn of(document: &Value) -> Self {
        let schemas = Schemas(&document["components"]["schemas"]);
        let mut wanted = BTreeMap::new();
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let name = parameter["name"].as_str().unwrap_or_default();
                    let expected = schemas.expected(&parameter["schema"]);
                    wanted.insert(key(path, method, name), expected);
                }
            }
        }
        Self(wanted)
    }

    /// Explains why the `value` of a parameter was refused.
    pub(super) fn explain(
        &self,
        (path, method): (&str, &str),
        name: &str,
        value: Option<&str>,
    ) -> String {
        let wanted = self.0.get(&key(path, &method.to_lowercase(), name));
        let wanted = wanted.map_or("another value", String::as_str);
        match value {
            Some(value) => {
                format!("`{name}`: expected {wanted}, found {}", found(&json!(value)))
            }
            None => format!("`{name}`: expected {wanted}"),
        }
    }
}

fn key(path: &str, method: &str, name: &str) -> String {
    format!("{method} {path} {name}")
}

#[cfg(test)]
mod tests {
    use poem_openapi::{Enum, Object, types::ParseFromJSON};

    use super::*;

    #[derive(Debug, Enum)]
    #[oai(rename_all = "lowercase")]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, Object)]
    struct Part {
        size: u32,
        #[oai(validator(maximum(value = "5")))]
        rank: Option<i8>,
    }

    #[derive(Debug, Object)]
    #[oai(deny_unknown_fields)]
    struct Whole {
        name: String,
        colour: Option<Colour>,
        parts: Option<Vec<Part>>,
    }

    fn explained(value: &Value) -> String {
        assert!(Whole::parse_from_json(Some(value.clone())).is_err(), "{value} is good");
        body::<Whole>(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_field_is_named_with_what_it_should_be() {
        for (value, expected) in [
            (json!([]), "the body: expected an object, found a list"),
            (json!({}), "`name` is missing"),
            (json!({"name": []}), "`name`: expected text, found a list"),
            (json!({"name": null}), "`name`: expected text, found null"),
            (
                json!({"name": "n", "colour": "blue"}),
                r#"`colour`: expected one of "red", "green", found "blue""#,
            ),
            (json!({"name": "n", "parts": {}}), "`parts`: expected a list, found an object"),
            (
                json!({"name": "n", "parts": [{"size": 1}, {"size": "x"}]}),
                r#"`parts[1].size`: expected a whole number, found "x""#,
            ),
            (
                json!({"name": "n", "naem": 1}),
                r#"the field "naem" is unknown; there are `colour`, `name`, `parts`"#,
            ),
        ] {
            assert_eq!(explained(&value), expected);
        }
    }
}
