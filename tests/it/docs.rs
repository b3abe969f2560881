//! What the documents say exists: commands, flags, files, routes, metrics, keys and links. The
//! requests of the tour are sent to a running service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use agentarea_api::cli::Cli;
use clap::Parser;
use serde_json::Value;

use crate::support::Setup;

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

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The pages by their names, without the lists of versions.
fn pages() -> BTreeMap<String, String> {
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
struct Block {
    page: String,
    heading: String,
    language: String,
    text: String,
    /// In front of the fence, as in a list.
    indent: usize,
}

fn blocks() -> Vec<Block> {
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
fn command_lines(block: &Block) -> Vec<String> {
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
fn commands(line: &str) -> Vec<Vec<String>> {
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
struct Routes(Vec<(String, Vec<String>, BTreeSet<String>)>);

impl Routes {
    fn read() -> Self {
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

    fn check(&self, method: &str, address: &str) -> Result<(), String> {
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

fn check(words: &[String], routes: &Routes) -> Result<(), String> {
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

#[test]
fn every_command_exists() {
    let routes = Routes::read();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for block in blocks() {
        for line in command_lines(&block) {
            for words in commands(&line) {
                seen += 1;
                if let Err(complaint) = check(&words, &routes) {
                    wrong.push(format!("{}, {}: {line}\n  {complaint}", block.page, block.heading));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 80, "only {seen} commands were found");
}

#[test]
fn a_command_that_does_not_exist_is_seen() {
    let routes = Routes::read();
    for line in [
        "agentarea-api heath",
        "ENVIRONMENT=production agentarea-api config check --formt json",
        "docker run --rm agentarea-api:local keys new",
        "docker compose -f compose.prod.yml up",
        "docker compose logs -f api1 workers",
        "curl -s localhost:8000/v1/evnts",
        "curl -s localhost:8000/v1/executions?limits=1 | jq",
        "curl -X POST localhost:8000/v1/dead-letters/ID/redrives",
        "curl -s localhost:8001/health",
        "cargo bench --bench figure",
        "cargo run --no-default-features --features sqlit",
        "kubectl apply -k deploy/kubernetes/overlays/staging",
        "scripts/teste",
        "frobnicate",
    ] {
        let complaints =
            commands(line).iter().filter(|words| check(words, &routes).is_err()).count();
        assert_eq!(complaints, 1, "{line}");
    }
    let words = commands("A=1 a 'b c' > d | e \"f # g\" # h");
    assert_eq!(words, [vec!["a", "b c"], vec!["e", "f # g"]]);
}

/// The keys of the configuration, and their sections.
fn keys() -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(inner, &key, into);
            into.insert(key);
        }
    }
    let text = fs::read_to_string(repository().join("config/schema.json")).unwrap();
    let mut found = BTreeSet::new();
    walk(&serde_json::from_str(&text).unwrap(), "", &mut found);
    found
}

/// What stands between backticks, outside of blocks.
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
    for (page, text) in pages() {
        for word in quoted(&text) {
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
            // Workflows have names of their own, and the health report an outbox.
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

#[test]
fn every_piece_of_configuration_is_good() {
    let mut seen = 0;
    for block in blocks().iter().filter(|block| block.language == "toml") {
        let traces = block.text.contains("otlp_endpoint") && !cfg!(feature = "otel");
        if traces || block.text.contains("[dependencies]") || block.page == "CONTRIBUTING.md" {
            continue;
        }
        seen += 1;
        let setup = Setup::new();
        setup.write_config(&block.text);
        let output = Command::new(env!("CARGO_BIN_EXE_agentarea-api"))
            .args(["config", "check"])
            .current_dir(setup.path())
            .env_clear()
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}, {}: {told}", block.page, block.heading);
    }
    assert!(seen >= 4, "only {seen} pieces were found");
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block && line.starts_with('#') {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            found.insert(kept.collect::<String>().replace(' ', "-"));
        }
    }
    found
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in &pages {
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = rest.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => page.clone(),
                path => {
                    let folder = Path::new(page).parent().unwrap();
                    let joined = folder.join(path);
                    let normal = joined.to_str().unwrap().replace("docs/../", "");
                    if !repository().join(&normal).exists() {
                        wrong.push(format!("{page}: {target}"));
                    }
                    normal
                }
            };
            let has = |text: &String| anchors(text).contains(anchor);
            if !anchor.is_empty() && !pages.get(&file).is_none_or(has) {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "these lead nowhere: {}", wrong.join(", "));
    assert!(seen > 60, "only {seen} links were found");
}

#[test]
fn the_example_in_the_page_is_the_example() {
    let program = fs::read_to_string(repository().join("examples/embedded.rs")).unwrap();
    let page = &pages()["docs/embedding.md"];
    assert!(
        page.contains(&format!("```rust\n{program}```")),
        "docs/embedding.md shows another program than examples/embedded.rs; copy it there"
    );
}

/// Plays a session again: what it prints is what stands below its commands.
fn replay(block: &Block, folder: &Path, variables: &[(&str, &str)]) {
    let program = Path::new(env!("CARGO_BIN_EXE_agentarea-api")).parent().unwrap();
    let commands = command_lines(block).join("\n");
    let expected: Vec<&str> = block.text.lines().filter(|line| !line.starts_with("$ ")).collect();
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1\n{commands}")])
        .current_dir(folder)
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", program.display()))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<&str> = printed.lines().collect();
    assert_eq!(printed, expected, "{}, {}: {commands}", block.page, block.heading);
}

/// The sessions below a heading.
fn sessions(page: &str, heading: &str) -> Vec<Block> {
    let here = |block: &Block| block.page == page && block.heading == heading;
    let found = blocks().into_iter().filter(|b| here(b) && b.language == "console");
    let found: Vec<Block> = found.collect();
    assert!(!found.is_empty(), "{page} has no session below {heading}");
    found
}

/// A folder with the files of `config/` as they are shipped.
fn shipped() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    for entry in fs::read_dir(repository().join("config")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join("config").join(path.file_name().unwrap())).unwrap();
    }
    folder
}

#[test]
fn the_first_steps_to_production_print_what_the_page_shows() {
    const PAGE: &str = "docs/development-to-production.md";
    const KEYS: &str = "[{ name = \"ci\", scopes = [\"read\"], sha256 = \
        \"d7b923210506ec90347a8555483bfd529618794b6ad18589e55d7fc25ecbac0a\" }]";
    let folder = shipped();
    let production = [
        ("ENVIRONMENT", "production"),
        ("REDIS_URL", "redis://redis:6379"),
        ("TEMPORAL_ADDRESS", "temporal:7233"),
        ("DATABASE_URL", "postgres://user:password@postgres:5432/agentarea"),
        ("AGENTAREA_AUTH__KEYS", KEYS),
    ];
    let first = sessions(PAGE, "1. Set `ENVIRONMENT=production`");
    replay(&first[0], folder.path(), &[]);
    replay(&first[1], folder.path(), &production);
    replay(&sessions(PAGE, "2. Review connection pool settings")[0], folder.path(), &production);
}

#[test]
fn the_sessions_with_the_configuration_print_what_the_page_shows() {
    let folder = tempfile::tempdir().unwrap();
    let (here, bad) = (folder.path().join("here"), folder.path().join("bad"));
    fs::create_dir_all(here.join("config")).unwrap();
    fs::create_dir(&bad).unwrap();
    fs::write(here.join(".env"), "ENVIRONMENT=staging\nPORT=8100\n").unwrap();
    fs::write(here.join("config/staging.toml"), "[telemetry]\nlog_filter = \"warn\"\n").unwrap();
    fs::write(here.join("secret"), "redis://redis\n").unwrap();
    let text = "# bad\n[server]\ndrain_delay = \"5\"\nmax_body = \"1GiB\"\n\n[event_broker]\n\
                backend = \"kafka\"\n\n\n\n\n[database.pool]\nmax_size = \"many\"\n";
    fs::write(bad.join("development.toml"), text).unwrap();
    let variables = [
        ("AGENTAREA_EVENT_BROKER__BACKEND", "redis"),
        ("AGENTAREA_EVENT_BROKER__REDIS__URL_FILE", "secret"),
    ];
    let sessions = sessions("README.md", "Commands");
    replay(&sessions[0], &here, &variables);
    fs::remove_file(here.join(".env")).unwrap();
    replay(&sessions[1], &here, &[]);
}

#[test]
fn the_tables_of_the_measurements_are_their_data() {
    let page = &pages()["docs/performance.md"];
    for name in ["pool", "waits", "probes", "replicas"] {
        let file = format!("docs/pictures/performance-{name}.csv");
        let data = fs::read_to_string(repository().join(&file)).unwrap();
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

mod running {
    use super::*;

    #[tokio::test]
    async fn every_metric_exists() {
        let service = Setup::new().start().await;
        service.healthy().await;
        let text = service.get("/metrics").send().await.unwrap().text().await.unwrap();
        let mut known: BTreeSet<String> = BTreeSet::new();
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
        let (mut wrong, mut seen) = (Vec::new(), 0);
        for (page, text) in pages() {
            for (at, _) in text.match_indices("agentarea_") {
                let rest = &text[at..];
                let end =
                    rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
                let (name, after) = rest.split_at(end);
                // The library, a pattern of names, a name of something else.
                let before = text[..at].chars().next_back();
                if name.starts_with("agentarea_api")
                    || after.starts_with(['(', '*'])
                    || before.is_some_and(|c| c.is_alphanumeric() || "_/".contains(c))
                {
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

    /// The requests of these sections work on the embedded defaults.
    const TOURS: [(&str, &str); 4] = [
        ("README.md", "A tour with curl"),
        ("README.md", "Operating"),
        ("docs/api.md", "Errors"),
        ("docs/development-to-production.md", "3. Update monitoring and alerting"),
    ];

    #[tokio::test]
    async fn the_requests_of_the_tour_are_answered() {
        let service = Setup::new().start().await;
        service.healthy().await;
        let host = service.base.trim_start_matches("http://");
        // Each answer's status goes to standard error, whatever becomes of the answer.
        let preamble = "curl() { command curl --write-out '%{stderr}%{http_code}\\n' \"$@\"; }\n";
        let mut seen = 0;
        for block in blocks() {
            if !TOURS.contains(&(block.page.as_str(), block.heading.as_str())) {
                continue;
            }
            let requests = command_lines(&block).into_iter();
            for line in requests.filter(|line| line.starts_with("curl") && !line.contains("-sN")) {
                let script = preamble.to_owned() + &line.replace("localhost:8000", host);
                let output =
                    Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{line}\n{told}");
                let status: u16 = told.lines().last().unwrap().parse().unwrap();
                let refused = line.contains("ehco") || line.contains("\"input\": 8");
                assert_eq!(status, if refused { 422 } else { status.min(299) }, "{line}");
                assert!(!output.stdout.is_empty(), "{line}");
                seen += 1;
            }
        }
        assert!(seen > 12, "only {seen} requests were sent");
    }
}

/// `examples/embedded.rs`, which `cargo test` builds.
#[tokio::test]
async fn the_embedded_connection_follows_a_server_that_stops_and_comes_back() {
    use std::{fs::File, process::Stdio};

    use crate::support::{Redis, eventually, signal};

    let folder = tempfile::tempdir().unwrap();
    let (mut redis, file) = (Redis::start().await, folder.path().join("printed"));
    let program = Path::new(env!("CARGO_BIN_EXE_agentarea-api"));
    let mut child = Command::new(program.with_file_name("examples").join("embedded"))
        .arg(redis.url().trim_start_matches("redis://"))
        .stdout(Stdio::from(File::create(&file).unwrap()))
        .spawn()
        .expect("the example is missing: cargo build --example embedded");
    let printed = || fs::read_to_string(&file).unwrap();
    let until = async |words: &str| {
        eventually(words, async || printed().contains(words).then_some(())).await;
    };
    until("+PONG: initialized, closed, built 1 times\n").await;
    redis.down();
    until(": unavailable, ").await;
    redis.up().await;
    until("+PONG: initialized, closed, built 2 times\n").await;
    signal(&child, "-INT");
    let status = eventually("it ends", async || child.try_wait().unwrap()).await;
    assert!(status.success() && printed().contains("\nclosed: "), "{}", printed());
}
