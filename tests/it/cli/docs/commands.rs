//! The commands that the documents give, as a shell reads them, and whether each exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use agentarea_api::cli::Cli;
use clap::Parser;
use serde_json::Value;

/// Programs that operators have, or are told to get.
const TOOLS: [&str; 16] = [
    "cat",
    "cd",
    "docker",
    "echo",
    "exec",
    "export",
    "grep",
    "jq",
    "kill",
    "kubectl",
    "psql",
    "redis-cli",
    "source",
    "temporal",
    "ulimit",
    "man",
];

pub(super) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The pages by their names, without the lists of versions.
pub(super) fn pages() -> BTreeMap<String, String> {
    let root = repository();
    let mut names = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            names.push(format!("docs/{}", path.file_name().unwrap().to_str().unwrap()));
        }
    }
    assert!(names.len() > 9, "{names:?}");
    names
        .into_iter()
        .map(|name| (name.clone(), fs::read_to_string(root.join(name)).unwrap()))
        .collect()
}

/// A block of code: its language, and what it holds.
pub(super) struct Block {
    pub(super) page: String,
    pub(super) heading: String,
    pub(super) language: String,
    pub(super) text: String,
    /// In front of the fence, as in a list.
    indent: usize,
}

pub(super) fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    for (page, text) in pages() {
        let mut heading = String::new();
        let mut open: Option<Block> = None;
        for line in text.lines() {
            let fence = line.trim_start().strip_prefix("```");
            match (&mut open, fence) {
                (None, Some(language)) => {
                    let (page, heading) = (page.clone(), heading.clone());
                    let language = language.to_owned();
                    let indent = line.len() - line.trim_start().len();
                    open = Some(Block { page, heading, language, text: String::new(), indent });
                }
                (Some(_), Some(_)) => found.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line.get(block.indent..).unwrap_or_default());
                    block.text.push('\n');
                }
                (None, None) if line.starts_with('#') => {
                    line.trim_start_matches(['#', ' ']).clone_into(&mut heading);
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{page} has a block without an end");
    }
    found
}

/// The command lines of a block: each line of a script; what stands behind `$` of a session.
pub(super) fn command_lines(block: &Block) -> Vec<String> {
    let text = block.text.replace("\\\n", " ");
    let lines = text.lines();
    match block.language.as_str() {
        "sh" => lines.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect(),
        "console" => {
            let mut calls: Vec<String> = Vec::new();
            let mut quoted = false;
            for line in lines {
                if let Some(call) = line.strip_prefix("$ ") {
                    calls.push(call.to_owned());
                } else if quoted {
                    calls.last_mut().unwrap().push_str(line);
                }
                quoted = calls.last().is_some_and(|call| call.matches('\'').count() % 2 == 1);
            }
            calls
        }
        _ => Vec::new(),
    }
}

/// The words of each command of a line, as a shell divides them.
pub(super) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let (mut word, mut quote, mut begun) = (String::new(), None, false);
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => (quote, begun) = (Some(letter), true),
            (None, '#') if !begun && word.is_empty() => break,
            (None, ' ' | '|' | ';' | '&' | '>' | '<' | '(' | ')') => {
                if begun || !word.is_empty() {
                    found.last_mut().unwrap().push(std::mem::take(&mut word));
                }
                begun = false;
                match letter {
                    '|' | ';' | '&' => found.push(Vec::new()),
                    // The file behind it is no argument.
                    '>' | '<' => {
                        while letters.next_if(|letter| *letter == '>' || *letter == ' ').is_some() {
                        }
                        while letters.next_if(|letter| !" |;&".contains(*letter)).is_some() {}
                    }
                    _ => {}
                }
            }
            (_, letter) => word.push(letter),
        }
    }
    if begun || !word.is_empty() {
        found.last_mut().unwrap().push(word);
    }
    // Variables before a command are set for it alone.
    let is_variable = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            name.chars().all(|letter| letter.is_ascii_uppercase() || "_0123456789".contains(letter))
        })
    };
    for words in &mut found {
        let variables = words.iter().take_while(|word| is_variable(word)).count();
        words.drain(..variables);
    }
    found.retain(|words| !words.is_empty());
    found
}

/// The routes of the specification: method and the parts of the path.
pub(super) struct Routes(Vec<(String, Vec<String>, BTreeSet<String>)>);

impl Routes {
    pub(super) fn read() -> Self {
        let text = fs::read_to_string(repository().join("openapi/agentarea-api.yaml")).unwrap();
        let document: Value = serde_yaml::from_str(&text).unwrap();
        let mut routes = Vec::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let names = operation["parameters"].as_array().into_iter().flatten();
                let queries = names
                    .filter(|parameter| parameter["in"] == "query")
                    .map(|parameter| parameter["name"].as_str().unwrap().to_owned());
                let parts = path.split('/').map(str::to_owned).collect();
                routes.push((method.to_uppercase(), parts, queries.collect()));
            }
        }
        for page in ["/", "/docs", "/openapi.json", "/openapi.yaml"] {
            let parts = page.split('/').map(str::to_owned).collect();
            routes.push(("GET".to_owned(), parts, BTreeSet::new()));
        }
        Self(routes)
    }

    pub(super) fn check(&self, method: &str, address: &str) -> Result<(), String> {
        let (path, query) = address.split_once('?').unwrap_or((address, ""));
        let path = if path.is_empty() { "/" } else { path };
        let given: Vec<&str> = path.split('/').collect();
        let fits = |parts: &[String]| {
            let same = |(part, given): (&String, &&str)| part.starts_with('{') || part == given;
            parts.len() == given.len() && parts.iter().zip(&given).all(same)
        };
        let mut found = self.0.iter().filter(|(known, parts, _)| known == method && fits(parts));
        let Some((_, _, queries)) = found.next() else {
            return Err(format!("there is no route {method} {path}"));
        };
        for name in query.split('&').filter_map(|pair| pair.split('=').next()) {
            if !name.is_empty() && !queries.contains(name) {
                return Err(format!("{method} {path} takes no {name}"));
            }
        }
        Ok(())
    }
}

/// Checks a call of curl that asks this service.
fn check_curl(words: &[String], routes: &Routes) -> Result<(), String> {
    let mut method = "GET".to_owned();
    let mut addresses = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--json" | "-d" => {
                rest.next();
                if method == "GET" {
                    "POST".clone_into(&mut method);
                }
            }
            "-X" => method = rest.next().cloned().unwrap_or_default(),
            "-H" | "-o" | "-w" => _ = rest.next(),
            flag if flag.starts_with('-') => {
                let known = flag.chars().skip(1).all(|letter| "sSiNfX".contains(letter));
                if !known {
                    return Err(format!("{flag} is not among curl's options that are used here"));
                }
                if flag.ends_with('X') {
                    method = rest.next().cloned().unwrap_or_default();
                }
            }
            address => addresses.push(address.to_owned()),
        }
    }
    for address in addresses {
        let Some(path) = address.strip_prefix("localhost:8000") else {
            return Err(format!("{address} is not localhost:8000"));
        };
        routes.check(&method, path)?;
    }
    Ok(())
}

fn exists(path: &str) -> Result<(), String> {
    if repository().join(path).exists() { Ok(()) } else { Err(format!("there is no {path}")) }
}

/// The names of benchmarks, examples and features in the manifest.
fn check_cargo(words: &[String]) -> Result<(), String> {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    for pair in words.windows(2) {
        let named = |line: &str| manifest.lines().any(|known| known.starts_with(line));
        let known = match pair[0].as_str() {
            "--bench" | "--example" => named(&format!("name = \"{}\"", pair[1])),
            "--features" => pair[1].split(',').all(|feature| named(&format!("{feature} = ["))),
            _ => true,
        };
        if !known {
            return Err(format!("Cargo.toml has no {} {}", pair[0], pair[1]));
        }
    }
    Ok(())
}

fn check_docker(words: &[String]) -> Result<(), String> {
    for pair in words.windows(2).filter(|pair| pair[0] == "-f" && pair[1].contains('.')) {
        exists(&pair[1])?;
    }
    if let Some(image) = words.iter().position(|word| word == "agentarea-api:local") {
        let in_it = std::iter::once("agentarea-api".to_owned()).chain(words[image + 1..].to_vec());
        if words.get(1).is_some_and(|word| word == "run") {
            return parse(&in_it.collect::<Vec<_>>());
        }
    }
    if let Some(logs) = words.iter().position(|word| word == "logs") {
        let compose = fs::read_to_string(repository().join("docker-compose.yml")).unwrap();
        for service in words[logs + 1..].iter().filter(|word| !word.starts_with('-')) {
            if !compose.contains(&format!("\n  {service}:")) {
                return Err(format!("docker-compose.yml has no {service}"));
            }
        }
    }
    Ok(())
}

/// Whether it is a command line of ours.
fn parse(words: &[String]) -> Result<(), String> {
    match Cli::try_parse_from(words) {
        Err(error) if error.use_stderr() => Err(error.to_string()),
        _ => Ok(()),
    }
}

pub(super) fn check(words: &[String], routes: &Routes) -> Result<(), String> {
    let program = words[0].as_str();
    match program {
        "agentarea-api" | "target/release/agentarea-api" => parse(words),
        "curl" => check_curl(&words[1..], routes),
        "cargo" => check_cargo(words),
        "docker" => check_docker(words),
        "kubectl" => words
            .iter()
            .filter(|word| word.starts_with("deploy/"))
            .try_for_each(|path| exists(&format!("{path}/kustomization.yaml"))),
        _ if program.starts_with("scripts/") => exists(program),
        _ if TOOLS.contains(&program) => Ok(()),
        _ => Err(format!("{program} is not a program that operators are told of")),
    }
}
