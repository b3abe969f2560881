//! Checks the imports of all files against the module order in the crate's documentation, and that
//! the tests named in `tests/README.md` exist.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Each module may use itself and the modules in the lines above.
const ORDER: [&[&str]; 12] = [
    &["tls", "error", "model"],
    &["config"],
    &["telemetry"],
    &["tasks"],
    &["connection"],
    &["backends"],
    &["manager"],
    &["services", "health"],
    &["api", "simulation"],
    &["lifecycle"],
    &["app"],
    &["cli"],
];
/// The only modules that may name a backend.
const MAY_NAME_BACKENDS: [&str; 2] = ["backends", "app"];
const BACKENDS: [&str; 6] = ["memory", "redis", "embedded", "temporal", "sqlite", "postgres"];

fn sources() -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, into: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).expect("the folder is readable") {
            let path = entry.expect("the entry is readable").path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("the file is readable");
                into.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 40, "the sources were not found");
    found
}

/// `src/api/auth.rs` and `src/health.rs` belong to `api` and `health`.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn rank(module: &str) -> Option<usize> {
    ORDER.iter().position(|group| group.contains(&module))
}

/// The program without its tests and comments.
fn code(text: &str) -> String {
    let program = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    program
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The top-level modules that follow `crate::`, alone or in braces.
fn used(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, _) in code.match_indices("crate::") {
        let rest = &code[index + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let mut depth = 1;
        let mut name = String::new();
        let mut at_start = true;
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => at_start = true,
                c if depth == 1 && at_start && (c.is_alphanumeric() || c == '_') => name.push(c),
                _ if !name.is_empty() => {
                    found.push(std::mem::take(&mut name));
                    at_start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        if !name.is_empty() {
            found.push(name);
        }
    }
    found
}

#[test]
fn modules_use_only_what_stands_before_them() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = module(&path);
        let Some(own_rank) = rank(&own) else { continue };
        for other in used(&code(&text)) {
            let allowed = other == own || rank(&other).is_none_or(|rank| rank < own_rank);
            if !allowed {
                wrong.push(format!("{} uses {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the order:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_looks_for() {
    let code = "use crate::{\n    api::{a, b},\n    error::Error,\n};\ncrate::config::load();";
    assert_eq!(used(code), ["api", "error", "config"]);
}

#[test]
fn every_module_has_its_place_in_the_order() {
    for (path, _) in sources() {
        let name = module(&path);
        let known = rank(&name).is_some() || ["lib", "main"].contains(&name.as_str());
        assert!(known, "{name} is missing in the order");
    }
}

#[test]
fn only_backends_and_app_name_a_backend() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let own = module(&path);
        if MAY_NAME_BACKENDS.contains(&own.as_str()) {
            continue;
        }
        let code = code(&text);
        for backend in BACKENDS {
            let named = [format!("{backend}::"), format!("\"{backend}\"")];
            if named.iter().any(|form| code.contains(form.as_str())) {
                wrong.push(format!("{} names {backend}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "only backends and app may:\n{}", wrong.join("\n"));
}

#[test]
fn the_heart_knows_no_family() {
    for (path, text) in sources().iter().filter(|(path, _)| module(path) == "connection") {
        for word in ["EventBroker", "ExecutionService", "Database"] {
            assert!(!code(text).contains(word), "{} names {word}", path.display());
        }
    }
}

/// Retry safety of a call is declared once, in the client beside the family's trait.
#[test]
fn services_call_backends_through_their_clients_alone() {
    for (path, text) in sources() {
        if module(&path) != "services" {
            continue;
        }
        let code = code(&text);
        for word in ["Operation", ".call(", "Managed"] {
            assert!(!code.contains(word), "{} says {word:?}", path.display());
        }
    }
}

/// The tests and benchmarks that a text names as `path/to/file.rs::name`.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let code = text.split('`').skip(1).step_by(2);
    let is_source = |file: &str| Path::new(file).extension().is_some_and(|ending| ending == "rs");
    code.filter_map(|code| code.split_once("::")).filter(|(file, _)| is_source(file)).collect()
}

#[test]
fn every_test_that_proves_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("tests/README.md")).expect("the page is there");
    let named = named_tests(&page);
    assert!(named.len() > 30, "{named:?}");
    for (file, name) in named {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        assert!(text.contains(&format!("fn {name}(")), "{file} has no {name}");
    }
}

#[test]
fn a_named_test_is_found() {
    let text = "| it is so | `a/b.rs::one`<br>`c.rs::two`, also `std::fs` and `alone.rs` |";
    assert_eq!(named_tests(text), [("a/b.rs", "one"), ("c.rs", "two")]);
}
