//! Pages, their blocks of code, and the commands in those.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

pub(crate) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages, sorted, without the changelog, which describes the past.
pub(crate) fn names() -> Vec<String> {
    let in_docs = fs::read_dir(repository().join("docs")).unwrap();
    let paths = in_docs.map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let pages = files.map(|path| format!("docs/{}", path.file_name().unwrap().display()));
    let mut names: Vec<String> =
        pages.chain(["README.md".to_owned(), "CONTRIBUTING.md".to_owned()]).collect();
    names.sort_unstable();
    names
}

/// A fenced block of code.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) page: String,
    /// The line of the page that opens it, counted from one.
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) marks: Vec<String>,
    /// The text, without the list indentation of each line.
    pub(crate) lines: Vec<String>,
    pub(crate) indent: usize,
}

impl Block {
    pub(crate) fn is(&self, mark: &str) -> bool {
        self.marks.iter().any(|known| known == mark)
    }

    pub(crate) fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line, "\n"]).collect()
    }

    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }
}

/// The blocks of a page.
pub(crate) fn blocks(page: &str) -> Vec<Block> {
    blocks_of(page, &read(page))
}

fn blocks_of(page: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                open = Some(Block {
                    page: page.to_owned(),
                    line: number,
                    language: words.next().unwrap_or_default(),
                    marks: words.collect(),
                    lines: Vec::new(),
                    indent: line.len() - line.trim_start().len(),
                });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.lines.push(line.get(block.indent..).unwrap_or_default().to_owned());
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page} has a block without an end");
    found
}

/// A command of a session, and the output that the page shows below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) output: String,
    /// The lines of the block that hold the output.
    pub(crate) lines: Range<usize>,
}

/// A command continues on the next line after a backslash, or inside quotes.
fn goes_on(command: &str) -> bool {
    command.ends_with('\\') || command.matches('\'').count() % 2 == 1
}

/// The commands of a block, each after a `$`; a script is one command without shown output.
pub(crate) fn steps(block: &Block) -> Vec<Step> {
    let count = block.lines.len();
    if block.language != "console" {
        return vec![Step { command: block.text(), output: String::new(), lines: count..count }];
    }
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in block.lines.iter().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            let command = command.to_owned();
            steps.push(Step { command, output: String::new(), lines: at + 1..at + 1 });
            continue;
        }
        let step = steps.last_mut();
        let step = step.unwrap_or_else(|| panic!("{} begins without a command", block.place()));
        if step.output.is_empty() && goes_on(&step.command) {
            step.command.push('\n');
            step.command.push_str(line);
            step.lines = at + 1..at + 1;
        } else {
            step.output.push_str(line);
            step.output.push('\n');
            step.lines.end = at + 1;
        }
    }
    steps
}

#[test]
fn blocks_and_their_commands_are_found() {
    let text =
        "# A\n```console servers\n$ a 'b\nc' \\\n  d\ne\n$ f\n```\n1. x\n   ```sh\n   g\n   ```\n";
    let blocks = blocks_of("page", text);
    let [session, script] = &blocks[..] else { panic!("{blocks:?}") };
    assert!(session.is("servers") && session.line == 2, "{session:?}");
    let step = |command: &str, output: &str, lines| Step {
        command: command.to_owned(),
        output: output.to_owned(),
        lines,
    };
    assert_eq!(steps(session), [step("a 'b\nc' \\\n  d", "e\n", 3..4), step("f", "", 5..5)]);
    assert_eq!(steps(script), [step("g\n", "", 1..1)]);
}
