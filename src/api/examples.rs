//! The examples of the specification, from `examples.yaml` beside this file: the requests and
//! answers of a service with its defaults.

use serde_json::Value;

/// For each operation, by its id: parameters by name, bodies by media type, answers by status. For
/// problems, by the name of the response.
#[derive(Debug)]
pub(super) struct Examples(Value);

impl Examples {
    pub(super) fn read() -> Self {
        let text = include_str!("examples.yaml").replace("VERSION", env!("CARGO_PKG_VERSION"));
        Self(serde_saphyr::from_str(&text).expect("the examples are YAML"))
    }

    /// Adds each example at its place in the document.
    pub(super) fn show(&self, document: &mut Value) {
        for (_, path) in members(document, "paths") {
            for operation in path.as_object_mut().into_iter().flat_map(|path| path.values_mut()) {
                let id = operation["operationId"].as_str().unwrap_or_default();
                let examples = &self.0["operations"][id];
                show_in_operation(operation, examples);
            }
        }
        let shared = document.get_mut("components");
        for (name, response) in shared.into_iter().flat_map(|shared| members(shared, "responses")) {
            show_in_content(response, |_| &self.0["problems"][name]);
        }
    }
}

fn show_in_operation(operation: &mut Value, examples: &Value) {
    for parameter in
        operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten()
    {
        let name = parameter["name"].as_str().unwrap_or_default();
        set(parameter, &examples["parameters"][name]);
    }
    if let Some(body) = operation.get_mut("requestBody") {
        show_in_content(body, |media_type| &examples["bodies"][media_type]);
    }
    for (status, response) in members(operation, "responses") {
        show_in_content(response, |_| &examples["answers"][status]);
    }
}

fn show_in_content<'a>(holder: &mut Value, example: impl Fn(&str) -> &'a Value) {
    for (media_type, media) in members(holder, "content") {
        set(media, example(media_type));
    }
}

fn set(holder: &mut Value, example: &Value) {
    if !example.is_null() {
        holder["example"] = example.clone();
    }
}

/// The entries of the object `name` in `value`; empty without such an object.
pub(super) fn members<'a>(
    value: &'a mut Value,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a mut Value)> + use<'a> {
    value.get_mut(name).and_then(Value::as_object_mut).into_iter().flatten()
}
