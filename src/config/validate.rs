//! Checks each layer against the schema and reports all problems at once.

use serde_json::{Number, Value};

use super::{
    given::given,
    keys::join,
    layer::Layer,
    problem::{Problem, Problems, Unclear},
    schema::{RootSchema, allowed_values, has_type, property},
    suggest::closest_word,
    values::{Size, duration},
};

/// Finds unknown keys, wrong types and values outside their limits, and removes them from the
/// layer, so that the rest can be read. A value that a later layer overrides is checked as well.
/// Removed values are added to `unclear`.
pub(super) fn validate(
    layer: &mut Layer,
    schema: &RootSchema,
    unclear: &mut Unclear,
) -> Vec<Problem> {
    let (everything_is_clear, mut unusable) = (Unclear::default(), Vec::new());
    let mut problems = Problems::new(&*layer, &everything_is_clear);
    let mut walk = Walk { schema, problems: &mut problems, unusable: &mut unusable, unclear };
    walk.value(schema.root(), &layer.root, "");
    let list = problems.list;
    for key in &unusable {
        // Several items of one list can be wrong; the list is removed once.
        unclear.add(layer.remove(key).unwrap_or(key));
    }
    list
}

struct Walk<'a, 'b> {
    schema: &'a RootSchema,
    problems: &'a mut Problems<'b>,
    /// The keys that cannot be used.
    unusable: &'a mut Vec<String>,
    unclear: &'a mut Unclear,
}

impl Walk<'_, '_> {
    fn value(&mut self, schema: &Value, value: &Value, key: &str) {
        match value {
            Value::Object(entries) if has_type(schema, "object") => {
                for (name, inner) in entries {
                    let key = join(key, name);
                    match property(schema, name) {
                        Some(inner_schema) => self.value(inner_schema, inner, &key),
                        // A table without known entries belongs to a backend that this build lacks.
                        None if schema.get("properties").is_none() => {}
                        None => self.unknown(key),
                    }
                }
                for name in schema["required"].as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap_or_default();
                    if !entries.contains_key(name) {
                        let key = join(key, name);
                        // A value that cannot be read is not missing.
                        if !self.unclear.contains(&key) {
                            self.problems.add(&key, "is missing");
                        }
                        self.unusable.push(key);
                    }
                }
            }
            Value::Array(items) if has_type(schema, "array") => {
                for (index, item) in items.iter().enumerate() {
                    self.value(&schema["items"], item, &format!("{key}.{index}"));
                }
            }
            _ => {
                if let Err(message) = check_scalar(schema, value) {
                    self.problems.add_suggesting(key, message, meant(schema, value));
                    self.unusable.push(key.to_owned());
                }
            }
        }
    }

    fn unknown(&mut self, key: String) {
        let meant = self.problems.add_unknown(&key, &self.schema.keys_near(&key));
        // The value was probably meant for that key.
        self.unclear.extend(meant);
        self.unusable.push(key);
    }
}

/// The allowed value that was probably meant.
fn meant(schema: &Value, value: &Value) -> Option<String> {
    closest_word(value.as_str()?, allowed_values(schema)?)
}

fn check_scalar(schema: &Value, value: &Value) -> Result<(), String> {
    let fits = match value {
        Value::String(_) => has_type(schema, "string"),
        Value::Bool(_) => has_type(schema, "boolean"),
        Value::Number(number) => {
            has_type(schema, "number") || (has_type(schema, "integer") && !number.is_f64())
        }
        _ => false,
    };
    if !fits {
        return Err(format!("expected {}, found {}", expected(schema), found(schema, value)));
    }
    match value {
        Value::String(text) => check_text(schema, text),
        Value::Number(number) => check_number(schema, number),
        _ => Ok(()),
    }
}

fn check_text(schema: &Value, text: &str) -> Result<(), String> {
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
    schema: &Value,
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

fn check_number(schema: &Value, number: &Number) -> Result<(), String> {
    let number = number.as_f64().unwrap_or(f64::NAN);
    let below = schema["minimum"].as_f64().is_some_and(|min| number < min);
    let above = schema["maximum"].as_f64().is_some_and(|max| number > max);
    if below || above {
        return Err(format!("expected {}, found {number}", expected(schema)));
    }
    Ok(())
}

/// The type that the schema expects, in words.
pub(super) fn expected(schema: &Value) -> String {
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
pub(super) fn limits(schema: &Value) -> Option<String> {
    let limit = |plain: &str, extended: &str| match (&schema[plain], &schema[extended]) {
        (_, Value::String(text)) => Some(text.clone()),
        (Value::Number(number), _) => Some(number.to_string().trim_end_matches(".0").to_owned()),
        _ => None,
    };
    match (limit("minimum", "x-minimum"), limit("maximum", "x-maximum")) {
        (Some(min), Some(max)) => Some(format!("{min} to {max}")),
        (Some(min), None) => Some(format!("at least {min}")),
        (None, Some(max)) => Some(format!("at most {max}")),
        (None, None) => None,
    }
}

fn found(schema: &Value, value: &Value) -> String {
    // A secret must not appear in the report, whatever its type.
    if schema["x-secret"] == true {
        return "another type".to_owned();
    }
    match value {
        // Where the schema expects no text, showing it would not help.
        Value::String(_) if has_type(schema, "object") || has_type(schema, "array") => {
            "text".to_owned()
        }
        Value::String(text) => given(text),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN).to_string(),
        Value::Object(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        // JSON has no other numbers.
        Value::Null => "a number that is not finite".to_owned(),
    }
}
