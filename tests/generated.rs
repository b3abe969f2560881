//! The generated files in the repository equal the current output of the program.

#![cfg(all(feature = "redis", feature = "worker", feature = "postgres", feature = "sqlite"))]

use std::{path::Path, process::Command};

fn generated(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_agentarea-api"))
        .args(arguments)
        .env_clear()
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("the output is text")
}

fn compare(file: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == generated(arguments),
        "{file} is stale; run `just generate`, or `agentarea-api {} > {file}`",
        arguments.join(" ")
    );
}

#[test]
fn the_default_configuration_file_is_current() {
    compare("config/default.toml", &["config", "default"]);
}

#[test]
fn the_configuration_schema_is_current() {
    compare("config/schema.json", &["config", "schema"]);
}

#[test]
fn the_page_of_the_configuration_is_current() {
    compare("docs/configuration.md", &["config", "docs"]);
}

#[test]
fn every_reference_of_the_specification_leads_somewhere() {
    let document: serde_json::Value = serde_saphyr::from_str(&generated(&["openapi"])).unwrap();
    let mut references = 0;
    let mut rest = vec![&document];
    while let Some(value) = rest.pop() {
        if let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').expect("it is in this document");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            references += 1;
        }
        rest.extend(value.as_object().into_iter().flat_map(|object| object.values()));
        rest.extend(value.as_array().into_iter().flatten());
    }
    assert!(references > 100, "{references}");
}

#[test]
fn everything_of_the_specification_has_an_example() {
    let document: serde_json::Value = serde_saphyr::from_str(&generated(&["openapi"])).unwrap();
    let members = |value: &serde_json::Value| value.as_object().cloned().unwrap_or_default();
    let mut missing = Vec::new();
    for (path, methods) in members(&document["paths"]) {
        for (method, operation) in members(&methods) {
            let of = |what: &str| format!("{method} {path}: {what}");
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let named = parameters.iter().map(|it| (it["name"].to_string(), it.clone()));
            let answers = members(&operation["responses"]).into_values();
            let holders = answers.chain([operation["requestBody"].clone()]);
            let bodies = holders.flat_map(|holder| members(&holder["content"]));
            missing.extend(
                named
                    .chain(bodies)
                    .filter(|(_, it)| it["example"].is_null())
                    .map(|(it, _)| of(&it)),
            );
            if operation["description"].is_null() {
                missing.push(of("description"));
            }
        }
    }
    for (name, response) in members(&document["components"]["responses"]) {
        let content = members(&response["content"]);
        missing.extend(content.values().filter(|it| it["example"].is_null()).map(|_| name.clone()));
    }
    assert!(missing.is_empty(), "src/api/examples.yaml lacks {missing:#?}");
}

#[test]
fn the_version_is_the_same_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, before) in [
        ("CHANGELOG.md", "\n## ["),
        ("deploy/kubernetes/guide.yaml", "image: agentarea-api:"),
        ("deploy/kubernetes/overlays/production/kustomization.yaml", "newTag: "),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        let after = text.split_once(before).unwrap_or_else(|| panic!("{file} has no {before:?}")).1;
        let found = after.split([' ', ']', '\n']).next();
        assert_eq!(found, Some(version), "{file} after {before:?}; Cargo.toml has the version");
    }
}

#[test]
fn the_specification_is_current() {
    compare("openapi/agentarea-api.yaml", &["openapi"]);
}
