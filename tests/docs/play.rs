//! Plays a page: its commands run in the order in which a reader meets them.

use std::{collections::BTreeMap, fs, ops::Range, process::Command};

use crate::{
    compare::{same, within},
    exist,
    pages::{Block, Step, blocks, read, repository, steps},
    shell::eventually,
    stage::{Kind, Stage},
};

/// The treatment of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Its commands run; they are compared if they are a session.
    Run { kind: Kind, second: bool, eventually: bool },
    /// Its commands are not run; each has to exist.
    Check,
    /// It is compared with a log.
    Log { kind: Kind, worker: bool },
    /// It is what the second shell prints, perhaps only after Ctrl-C.
    Second { kind: Kind, interrupt: bool },
    /// It is configuration; of a stage, if that is named.
    Config(Option<Kind>),
    /// It is a program.
    Python,
    /// There is nothing to run.
    Look,
}

/// Written by a test or by the program, which compare them.
const GENERATED: [&str; 2] = ["docs/configuration.md", "docs/outages.md"];

fn kind_of(mark: &str) -> Option<Kind> {
    match mark {
        "servers" => Some(Kind::Servers),
        "production" => Some(Kind::Production),
        "shell" => Some(Kind::Shell),
        _ => None,
    }
}

/// An error names a block that nothing would test.
fn act(block: &Block) -> Result<Act, String> {
    let mut kind = None;
    let mut rest = Vec::new();
    for mark in &block.marks {
        match kind_of(mark) {
            Some(found) if kind.is_none() => kind = Some(found),
            _ => rest.push(mark.as_str()),
        }
    }
    let beside = kind.unwrap_or(Kind::Embedded);
    let act = match (block.language.as_str(), rest.as_slice()) {
        ("console" | "sh", [need]) if kind.is_none() && exist::NEEDS.contains(need) => Act::Check,
        ("console" | "sh", marks) => {
            let known = |mark: &&&str| ["second", "eventually"].contains(*mark);
            if marks.iter().filter(known).count() < marks.len() {
                return Err(format!("unknown marks {marks:?}"));
            }
            let (second, again) = (marks.contains(&"second"), marks.contains(&"eventually"));
            Act::Run { kind: beside, second, eventually: again }
        }
        ("text", ["log"]) => Act::Log { kind: beside, worker: false },
        ("text", ["log", "worker"]) => Act::Log { kind: beside, worker: true },
        ("text", ["second"]) => Act::Second { kind: beside, interrupt: false },
        ("text", ["second", "interrupt"]) => Act::Second { kind: beside, interrupt: true },
        ("toml", []) => Act::Config(kind),
        ("text", ["drawing"]) | ("rust", ["example"]) | ("toml", ["cargo"]) => Act::Look,
        ("python", []) => Act::Python,
        _ if GENERATED.contains(&block.page.as_str()) && block.marks.is_empty() => Act::Look,
        (language, marks) => return Err(format!("nothing tests {language:?} marked {marks:?}")),
    };
    Ok(act)
}

/// The commands of a page have a stage of each kind that they ask for.
struct Player {
    stages: BTreeMap<Kind, Stage>,
    config: BTreeMap<Kind, String>,
    wrong: Vec<String>,
    /// Lines of the page that show an output, and the output they should show.
    printed: Vec<(Range<usize>, usize, String)>,
}

impl Player {
    fn stage(&mut self, kind: Kind) -> &mut Stage {
        let config = self.config.get(&kind).cloned().unwrap_or_default();
        self.stages.entry(kind).or_insert_with(|| Stage::start(kind, &config))
    }

    fn step(&mut self, block: &Block, step: &Step, kind: Kind, again: bool) {
        let is_session = block.language == "console";
        let stage = self.stage(kind);
        let command = stage.as_run(&step.command);
        let mut attempt = || {
            let (printed, code) = stage.shell.run(&command)?;
            let printed = stage.as_shown(&printed);
            let is_good = if is_session {
                same(&printed, &step.output)
            } else if code == 0 {
                Ok(())
            } else {
                Err(format!("exit code {code}: {printed}"))
            };
            Ok::<_, String>((printed, is_good))
        };
        let mut last = attempt();
        if again {
            let _in_time = eventually(|| {
                if !matches!(last, Ok((_, Ok(())))) {
                    last = attempt();
                }
                matches!(last, Ok((_, Ok(())))).then_some(())
            });
        }
        let complaint = match last {
            Ok((_, Ok(()))) => return,
            Ok((printed, Err(complaint))) => {
                let lines = block.line + step.lines.start..block.line + step.lines.end;
                self.printed.push((lines, block.indent, printed));
                complaint
            }
            Err(complaint) => complaint,
        };
        self.wrong.push(format!("{}: {}\n{complaint}", block.place(), step.command.trim_end()));
    }

    /// Waits until the second shell has printed what a block shows.
    fn second(&mut self, block: &Block, kind: Kind, shown: &str) {
        let shell = self.stage(kind).second();
        let mut last = Ok(());
        let found = eventually(|| {
            last = same(&shell.unseen(), shown);
            last.is_ok().then_some(())
        });
        if found.is_some() {
            shell.see();
        } else {
            self.wrong.push(format!("{}: in the second shell\n{last:?}", block.place()));
        }
    }

    fn log(&mut self, block: &Block, kind: Kind, worker: bool) {
        let name = if worker { "log-worker" } else { "log" };
        let mut last = Ok(());
        let stage = self.stage(kind);
        let found = eventually(|| {
            last = within(&stage.log(name), &block.text());
            last.is_ok().then_some(())
        });
        if found.is_none() {
            self.wrong.push(format!("{}: in the log\n{}", block.place(), last.unwrap_err()));
        }
    }

    fn play(&mut self, block: &Block) {
        match act(block).unwrap_or_else(|complaint| panic!("{}: {complaint}", block.place())) {
            Act::Run { kind, second: true, .. } => {
                for step in steps(block) {
                    let stage = self.stage(kind);
                    let command = stage.as_run(&step.command);
                    stage.second().begin(&command);
                    self.second(block, kind, &step.output);
                }
            }
            Act::Run { kind, eventually, .. } => {
                for step in steps(block) {
                    self.step(block, &step, kind, eventually);
                }
            }
            Act::Check => self.wrong.extend(exist::complaints(block)),
            Act::Log { kind, worker } => self.log(block, kind, worker),
            Act::Second { kind, interrupt } => {
                if interrupt {
                    self.stage(kind).second().interrupt();
                }
                self.second(block, kind, &block.text());
            }
            Act::Config(_) => self.wrong.extend(config_complaint(block)),
            Act::Python => self.wrong.extend(python_complaint(block)),
            Act::Look => {}
        }
    }
}

/// Whether the program would start with it.
fn config_complaint(block: &Block) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config")).unwrap();
    fs::write(folder.path().join("config/development.toml"), block.text()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_agentarea-api"))
        .args(["config", "check"])
        .current_dir(folder.path())
        .env_clear()
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    // A build without a feature refuses its keys by name, and nothing else.
    let lacks_feature = told.contains(" 1 problem:") && told.contains("needs the cargo feature");
    let is_good = output.status.success() || lacks_feature;
    (!is_good).then(|| format!("{}: {told}", block.place()))
}

fn python_complaint(block: &Block) -> Option<String> {
    let parse = "import ast, sys; ast.parse(sys.argv[1])";
    let output = Command::new("python3").args(["-c", parse, &block.text()]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("{}: {told}", block.place()))
}

/// From the last to the first, so that the lines of those before stay where they are.
fn write(page: &str, mut printed: Vec<(Range<usize>, usize, String)>) {
    let text = read(page);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    printed.sort_by_key(|(range, ..)| std::cmp::Reverse(range.start));
    for (range, indent, output) in printed {
        let output = output.trim_matches('\n').lines();
        let output = output.map(|line| format!("{}{line}", " ".repeat(indent)));
        lines.splice(range, output.collect::<Vec<_>>());
    }
    fs::write(repository().join(page), lines.join("\n") + "\n").unwrap();
}

/// Plays a page from its beginning to its end.
pub(crate) fn page(page: &str) {
    let blocks = blocks(page);
    let mut config: BTreeMap<Kind, String> = BTreeMap::new();
    for block in &blocks {
        if let Ok(Act::Config(Some(kind))) = act(block) {
            config.entry(kind).or_default().push_str(&block.text());
        }
    }
    let mut player =
        Player { stages: BTreeMap::new(), config, wrong: Vec::new(), printed: Vec::new() };
    for block in &blocks {
        player.play(block);
    }
    if std::env::var_os("WRITE_DOCS").is_some() {
        write(page, player.printed);
    }
    let wrong = player.wrong;
    let logs = player.stages.iter().map(|(kind, stage)| format!("{kind:?}\n{}", stage.log("log")));
    let logs = logs.collect::<Vec<_>>().join("\n");
    assert!(
        wrong.is_empty(),
        "{logs}\n{}\n{page} is stale; WRITE_DOCS=1 writes what commands print now",
        wrong.join("\n")
    );
}

#[test]
fn a_block_that_nothing_tests_is_refused() {
    let block = |language: &str, marks: &[&str]| Block {
        page: "docs/page.md".to_owned(),
        line: 1,
        language: language.to_owned(),
        marks: marks.iter().map(|&mark| mark.to_owned()).collect(),
        lines: vec!["$ true".to_owned()],
        indent: 0,
    };
    for (language, marks) in [
        ("", &[][..]),
        ("text", &[]),
        ("json", &[]),
        ("bash", &[]),
        ("console", &["sometimes"]),
        ("console", &["docker", "cluster"]),
        ("sh", &["servers", "docker"]),
        ("toml", &["sometimes"]),
        ("python", &["sometimes"]),
    ] {
        act(&block(language, marks)).unwrap_err();
    }
    let run = Act::Run { kind: Kind::Servers, second: false, eventually: true };
    assert_eq!(act(&block("console", &["servers", "eventually"])), Ok(run));
    assert_eq!(act(&block("sh", &["docker"])), Ok(Act::Check));
}
