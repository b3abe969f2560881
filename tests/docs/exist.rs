//! Checks commands that are not run: everything they name must exist.

use std::iter;

use agentarea_api::cli::Cli;
use clap::Parser;

use crate::{
    facts::routes_of_the_page,
    pages::{Block, read, repository, steps},
};

/// Reasons for not running a block, and the check that covers it instead. Each command must exist,
/// with its flags, files and names.
///
/// - `build` builds, measures or tests for minutes: `scripts/test` runs the same commands
/// - `cluster` needs Kubernetes: `scripts/verify-deploy` builds, scores and validates the manifests
/// - `docker` needs its engine: `scripts/verify-containers` starts the same files
/// - `internet` uses another host
/// - `operator` needs the reader's own servers
/// - `systemd` needs it as the first process: `scripts/verify-deploy` verifies the units
pub(crate) const NEEDS: [&str; 6] =
    ["build", "cluster", "docker", "internet", "operator", "systemd"];

/// Programs that operators have, or that the pages tell them to install.
const TOOLS: [&str; 19] = [
    "apt-get",
    "cat",
    "cd",
    "chmod",
    "cp",
    "echo",
    "export",
    "grep",
    "install",
    "journalctl",
    "jq",
    "just",
    "kill",
    "psql",
    "redis-cli",
    "source",
    "systemctl",
    "temporal",
    "ulimit",
];

/// The words of each command on a line, as a shell splits them.
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
                    // The file after it is not an argument.
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
    // Variables before a command apply to it alone.
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

fn exists(path: &str) -> Result<(), String> {
    if repository().join(path).exists() { Ok(()) } else { Err(format!("there is no {path}")) }
}

/// The names of benchmarks, examples, tests and features.
fn check_cargo(words: &[String]) -> Result<(), String> {
    let manifest = read("Cargo.toml");
    for pair in words.windows(2) {
        let named = |line: &str| manifest.lines().any(|known| known.starts_with(line));
        let name = &pair[1];
        let is_test = || {
            let root = repository().join("tests");
            root.join(format!("{name}.rs")).exists() || root.join(name).join("main.rs").exists()
        };
        let known = match pair[0].as_str() {
            "--bench" | "--example" => named(&format!("name = \"{name}\"")),
            "--features" => name.split(',').all(|feature| named(&format!("{feature} = ["))),
            "--test" => is_test() || named(&format!("name = \"{name}\"")),
            _ => true,
        };
        if !known {
            return Err(format!("there is no {} {name}", pair[0]));
        }
    }
    Ok(())
}

fn check_docker(words: &[String]) -> Result<(), String> {
    for pair in words.windows(2).filter(|pair| pair[0] == "-f" && pair[1].contains('.')) {
        exists(&pair[1])?;
    }
    if let Some(image) = words.iter().position(|word| word == "agentarea-api:local")
        && words.get(1).is_some_and(|word| word == "run")
    {
        let program = iter::once("agentarea-api".to_owned());
        return parse(&program.chain(words[image + 1..].to_vec()).collect::<Vec<_>>());
    }
    let named = words.iter().position(|word| word == "logs" || word == "restart");
    if let Some(named) = named {
        let compose = read("docker-compose.yml");
        for service in words[named + 1..].iter().filter(|word| !word.starts_with('-')) {
            if !compose.contains(&format!("\n  {service}:")) {
                return Err(format!("docker-compose.yml has no {service}"));
            }
        }
    }
    Ok(())
}

/// A request to this service names one of its routes.
fn check_curl(words: &[String]) -> Result<(), String> {
    let after = |flag: &str| {
        let at = words.iter().position(|word| word == flag)?;
        words.get(at + 1)
    };
    let has_body = after("--json").is_some() || after("-d").is_some();
    let method = after("-X").map_or(if has_body { "POST" } else { "GET" }, String::as_str);
    for address in words.iter().filter_map(|word| word.strip_prefix("localhost:8000")) {
        let path = address.split('?').next().unwrap_or_default();
        let fits = |route: &String| {
            let Some((_, known)) = route.split_once(' ').filter(|known| known.0 == method) else {
                return false;
            };
            let same = |(known, given): (&str, &str)| known.starts_with('{') || known == given;
            known.split('/').count() == path.split('/').count()
                && known.split('/').zip(path.split('/')).all(same)
        };
        if !routes_of_the_page().iter().any(fits) {
            return Err(format!("there is no route {method} {path}"));
        }
    }
    Ok(())
}

/// `scripts/verify-deploy` builds and validates the folder.
fn check_kubectl(words: &[String]) -> Result<(), String> {
    for path in words.iter().filter(|word| word.starts_with("deploy/")) {
        exists(path)?;
        let overlay = path.strip_prefix("deploy/kubernetes/overlays/").unwrap_or_default();
        let overlay = overlay.split('/').next().unwrap_or_default();
        let verified = read("scripts/verify-deploy");
        let list = verified.lines().find(|line| line.contains("for overlay in "));
        if !list.is_some_and(|list| list.contains(&format!(" {overlay}"))) && overlay != path {
            return Err(format!("scripts/verify-deploy does not look at {path}"));
        }
    }
    Ok(())
}

/// True for a command line of this program.
fn parse(words: &[String]) -> Result<(), String> {
    match Cli::try_parse_from(words) {
        Err(error) if error.use_stderr() => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn check(words: &[String]) -> Result<(), String> {
    let program = words[0].as_str();
    match program {
        "agentarea-api" | "target/release/agentarea-api" => parse(words),
        "cargo" => check_cargo(words),
        "curl" => check_curl(&words[1..]),
        "docker" => check_docker(words),
        "kubectl" => check_kubectl(words),
        _ if program.starts_with("scripts/") => exists(program),
        _ if TOOLS.contains(&program) => Ok(()),
        _ => Err(format!("{program} is not a program that operators are told of")),
    }
}

/// Problems of the commands in a block.
pub(crate) fn complaints(block: &Block) -> Vec<String> {
    let mut wrong = Vec::new();
    if block.is("systemd") && !read("scripts/verify-deploy").contains("systemd-analyze") {
        wrong.push(format!("{}: scripts/verify-deploy verifies no unit", block.place()));
    }
    for step in steps(block) {
        let text = step.command.replace("\\\n", " ");
        for words in text.lines().flat_map(commands) {
            if let Err(complaint) = check(&words) {
                wrong.push(format!("{}: {}\n  {complaint}", block.place(), words.join(" ")));
            }
        }
    }
    wrong
}

#[test]
fn a_command_that_does_not_exist_is_seen() {
    for line in [
        "agentarea-api heath",
        "ENVIRONMENT=production agentarea-api config check --formt json",
        "docker run --rm agentarea-api:local keys new",
        "docker compose -f compose.prod.yml up",
        "docker compose logs -f api1 workers",
        "curl -s localhost:8000/v1/evnts",
        "curl -X POST localhost:8000/v1/dead-letters/ID",
        "cargo bench --bench figure",
        "cargo test --test doc",
        "cargo run --no-default-features --features sqlit",
        "kubectl apply -k deploy/kubernetes/overlays/staging",
        "scripts/teste",
        "frobnicate",
    ] {
        let complaints = commands(line).iter().filter(|words| check(words).is_err()).count();
        assert_eq!(complaints, 1, "{line}");
    }
    let words = commands("A=1 a 'b c' > d | e \"f # g\" # h");
    assert_eq!(words, [vec!["a", "b c"], vec!["e", "f # g"]]);
}
