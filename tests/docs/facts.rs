//! Compares configuration keys, metrics, routes and measurements in the pages with their sources.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    pages::{names, read},
    stage::{Kind, Stage},
};

/// The keys of the configuration, and their sections.
fn keys() -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(inner, &key, into);
            into.insert(key);
        }
    }
    let mut found = BTreeSet::new();
    walk(&serde_json::from_str(&read("config/schema.json")).unwrap(), "", &mut found);
    found
}

/// Text between backticks, outside blocks.
fn quoted(text: &str) -> Vec<String> {
    let mut in_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_key_and_variable_of_the_configuration_exists() {
    let keys = keys();
    let sections: BTreeSet<&str> = keys.iter().filter_map(|key| key.split('.').next()).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in names() {
        for word in quoted(&read(&page)) {
            let key = match word.strip_prefix("AGENTAREA_").filter(|rest| rest.contains("__")) {
                Some(rest) => rest.split('=').next().unwrap().to_lowercase().replace("__", "."),
                None => word.split(" = ").next().unwrap().to_owned(),
            };
            let section = key.split('.').next().unwrap();
            let plain = key
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._".contains(c));
            let file = [".rs", ".md", ".toml", ".yml"].iter().any(|ending| key.ends_with(ending));
            if !plain || file || !key.contains('.') || !sections.contains(section) {
                continue;
            }
            seen += 1;
            // The names of workflows are free, and `outbox` is also a field of the health report.
            let other = section == "workflows"
                || key.starts_with("outbox.event_broker")
                || key.starts_with("outbox.execution_service");
            if !keys.contains(&key) && !other {
                wrong.push(format!("{page}: {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no such key: {}", wrong.join(", "));
    assert!(seen > 100, "only {seen} keys were found");
}

/// The names of metrics in an exposition.
fn exposed(text: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["", "_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => &[""],
        };
        known.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
    known
}

/// Excludes the library, patterns of names, and parts of other names.
fn is_metric(before: Option<char>, name: &str, after: &str) -> bool {
    let inside = before.is_some_and(|c| c.is_alphanumeric() || "_/".contains(c));
    !inside && !name.starts_with("agentarea_api") && !after.starts_with(['(', '*'])
}

fn metrics_are_known(known: &BTreeSet<String>) {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in names() {
        let text = read(&page);
        for (at, _) in text.match_indices("agentarea_") {
            let rest = &text[at..];
            let is_part = |c: char| !c.is_ascii_lowercase() && c != '_';
            let (name, after) = rest.split_at(rest.find(is_part).unwrap_or(rest.len()));
            if !is_metric(text[..at].chars().next_back(), name, after) {
                continue;
            }
            seen += 1;
            if !known.contains(name) {
                wrong.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no such metric: {}", wrong.join(", "));
    assert!(seen > 30, "only {seen} metrics were found");
}

/// The rows of the table of routes, as `METHOD path`.
pub(crate) fn routes_of_the_page() -> BTreeSet<String> {
    let page = read("docs/api.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    let mut found = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let methods = ["GET", "POST", "PUT", "DELETE"];
        if methods.contains(&cells[0]) {
            let paths = cells[1].split('`').skip(1).step_by(2);
            found.extend(paths.map(|path| format!("{} {path}", cells[0])));
        }
    }
    found
}

fn routes_are_those(specification: &Value) {
    // The specification does not contain itself or the pages for people.
    let pages = ["/", "/docs", "/openapi.json", "/openapi.yaml"];
    let mut known: BTreeSet<String> = pages.iter().map(|page| format!("GET {page}")).collect();
    for (path, operations) in specification["paths"].as_object().unwrap() {
        let methods = operations.as_object().unwrap().keys();
        known.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    assert_eq!(routes_of_the_page(), known, "the table of routes in docs/api.md");
}

#[test]
fn every_metric_exists_and_every_route_is_listed() {
    let mut stage = Stage::start(Kind::Embedded, "");
    let mut get = |path: &str| {
        let command = stage.as_run(&format!("curl -s localhost:8000{path}"));
        stage.shell.run(&command).unwrap().0
    };
    metrics_are_known(&exposed(&get("/metrics")));
    routes_are_those(&serde_json::from_str(&get("/openapi.json")).unwrap());
}

#[test]
fn the_program_in_the_page_is_the_example() {
    let program = read("examples/embedded.rs");
    assert!(
        read("docs/embedding.md").contains(&format!("```rust example\n{program}```")),
        "docs/embedding.md shows another program than examples/embedded.rs; copy it there"
    );
}

#[test]
fn the_tables_of_the_measurements_are_their_data() {
    let page = read("docs/performance.md");
    for name in ["pool", "waits", "probes", "replicas"] {
        let file = format!("docs/pictures/performance-{name}.csv");
        let data = read(&file);
        let place = page.split_once(&format!("<!-- {name}: measured -->")).unwrap().1;
        let place = place.split_once("<!-- end -->").unwrap().0;
        let rows = place.lines().filter(|line| line.starts_with('|') && !line.starts_with("|--"));
        let rows: Vec<String> =
            rows.map(|row| row.trim_matches(['|', ' ']).replace(" | ", ",")).collect();
        let titles = rows[0].replace(", ", ",");
        assert_eq!(titles, data.lines().next().unwrap().replace(", ", ","), "{file}");
        assert_eq!(rows[1..], data.lines().skip(1).collect::<Vec<_>>(), "{file}");
        assert!(rows.len() > 3, "{file} has too few rows");
    }
}
