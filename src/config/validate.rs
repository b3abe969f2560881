//! Checks the merged values against the schema, and reports everything that is wrong at once.

use figment::value::Value;
use serde_json::Value as Schema;

use super::{
    given::given,
    problem::Problems,
    schema::{RootSchema, allowed_values, has_type, property},
    tree::Tree,
    values::{Size, duration},
};

/// Finds unknown keys, wrong types and values outside their limits.
pub(super) fn validate(tree: &Tree, schema: &RootSchema, problems: &mut Problems<'_>) {
    Walk { schema, problems }.value(schema.root(), &tree.root, "");
}

struct Walk<'a, 'b> {
    schema: &'a RootSchema,
    problems: &'a mut Problems<'b>,
}

impl Walk<'_, '_> {
    fn value(&mut self, schema: &Schema, value: &Value, key: &str) {
        match value {
            Value::Dict(_, entries) if has_type(schema, "object") => {
                for (name, inner) in entries {
                    let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                    match property(schema, name) {
                        Some(inner_schema) => self.value(inner_schema, inner, &key),
                        // A table without known entries belongs to a backend that is compiled out.
                        None if schema.get("properties").is_none() => {}
                        None => self.problems.add_unknown(&key, self.schema.keys()),
                    }
                }
                for name in schema["required"].as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap_or_default();
                    if !entries.contains_key(name) {
                        self.problems.add(&format!("{key}.{name}"), "is missing");
                    }
                }
            }
            Value::Array(_, items) if has_type(schema, "array") => {
                for (index, item) in items.iter().enumerate() {
                    self.value(&schema["items"], item, &format!("{key}.{index}"));
                }
            }
            _ => {
                if let Err(message) = check_scalar(schema, value) {
                    self.problems.add(key, message);
                }
            }
        }
    }
}

fn check_scalar(schema: &Schema, value: &Value) -> Result<(), String> {
    let fits = match value {
        Value::String(..) => has_type(schema, "string"),
        Value::Bool(..) => has_type(schema, "boolean"),
        Value::Num(_, number) => {
            has_type(schema, "number") || (has_type(schema, "integer") && number.is_whole())
        }
        _ => false,
    };
    if !fits {
        return Err(format!("expected {}, found {}", expected(schema), found(schema, value)));
    }
    match value {
        Value::String(_, text) => check_text(schema, text),
        Value::Num(_, number) => check_number(schema, number.as_f64()),
        _ => Ok(()),
    }
}

fn check_text(schema: &Schema, text: &str) -> Result<(), String> {
    if let Some(allowed) = allowed_values(schema)
        && !allowed.contains(&text)
    {
        return Err(format!("expected {}, found {}", expected(schema), given(text)));
    }
    match schema["format"].as_str() {
        Some("duration") => check_limits(schema, text, duration::parse),
        Some("size") => check_limits(schema, text, Size::parse),
        Some("ip") if text.parse::<std::net::IpAddr>().is_err() => {
            Err(format!("expected {}, found {}", expected(schema), given(text)))
        }
        _ => Ok(()),
    }
}

fn check_limits<T: PartialOrd>(
    schema: &Schema,
    text: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<(), String> {
    let value = parse(text)?;
    let limit = |name: &str| schema[name].as_str();
    let below = limit("x-minimum").is_some_and(|min| parse(min).is_ok_and(|min| value < min));
    let above = limit("x-maximum").is_some_and(|max| parse(max).is_ok_and(|max| value > max));
    if below || above {
        // Text that is a duration or a size is no secret.
        return Err(format!("expected {}, found {text:?}", expected(schema)));
    }
    Ok(())
}

fn check_number(schema: &Schema, number: f64) -> Result<(), String> {
    let below = schema["minimum"].as_f64().is_some_and(|min| number < min);
    let above = schema["maximum"].as_f64().is_some_and(|max| number > max);
    if below || above {
        return Err(format!("expected {}, found {number}", expected(schema)));
    }
    Ok(())
}

/// What the schema wants, in words.
pub(super) fn expected(schema: &Schema) -> String {
    if let Some(allowed) = allowed_values(schema) {
        let quoted: Vec<String> = allowed.iter().map(|value| format!("{value:?}")).collect();
        return format!("one of {}", quoted.join(", "));
    }
    let what = match schema["format"].as_str() {
        Some("duration") => "a duration such as \"30s\"",
        Some("size") => "a size such as \"1MiB\"",
        Some("ip") => "an IP address such as \"0.0.0.0\"",
        _ if has_type(schema, "object") => "a table",
        _ if has_type(schema, "array") => "a list",
        _ if has_type(schema, "boolean") => "true or false",
        _ if has_type(schema, "integer") => "a whole number",
        _ if has_type(schema, "number") => "a number",
        _ => "text",
    };
    match limits(schema) {
        Some(limits) => format!("{what}, {limits}"),
        None => what.to_owned(),
    }
}

/// The limits of the schema, in words.
pub(super) fn limits(schema: &Schema) -> Option<String> {
    let limit = |plain: &str, extended: &str| match (&schema[plain], &schema[extended]) {
        (_, Schema::String(text)) => Some(text.clone()),
        (Schema::Number(number), _) => Some(number.to_string().trim_end_matches(".0").to_owned()),
        _ => None,
    };
    match (limit("minimum", "x-minimum"), limit("maximum", "x-maximum")) {
        (Some(min), Some(max)) => Some(format!("{min} to {max}")),
        (Some(min), None) => Some(format!("at least {min}")),
        (None, Some(max)) => Some(format!("at most {max}")),
        (None, None) => None,
    }
}

fn found(schema: &Schema, value: &Value) -> String {
    // What was meant as a secret must not appear in the report, whatever its type.
    if schema["x-secret"] == true {
        return "another type".to_owned();
    }
    match value {
        // Where no text is expected, it does not help to see it.
        Value::String(..) if has_type(schema, "object") || has_type(schema, "array") => {
            "text".to_owned()
        }
        Value::String(_, text) => given(text),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => number.as_f64().to_string(),
        Value::Dict(..) => "a table".to_owned(),
        Value::Array(..) => "a list".to_owned(),
        Value::Char(_, letter) => format!("{letter:?}"),
        Value::Empty(..) => "nothing".to_owned(),
    }
}

/// What the walk asks of figment's numbers.
trait Number {
    fn as_f64(&self) -> f64;
    fn is_whole(&self) -> bool;
}

impl Number for figment::value::Num {
    #[expect(clippy::cast_precision_loss, reason = "limits are far below the loss of precision")]
    fn as_f64(&self) -> f64 {
        self.to_f64()
            .or_else(|| self.to_i128().map(|number| number as f64))
            .or_else(|| self.to_u128().map(|number| number as f64))
            .unwrap_or(f64::NAN)
    }

    fn is_whole(&self) -> bool {
        self.to_i128().is_some() || self.to_u128().is_some()
    }
}
