//! `.env`: variables in a file.

use std::{cell::Cell, io, path::Path};

use super::{
    files::{self, file_problem, is_there, line_problem},
    problem::Problem,
};

/// The message for a broken entry. It does not repeat the entry, which can hold a secret.
const BROKEN: &str = "cannot be read; expected a line of the form NAME=value, with quotes around a \
    value that has blanks";

/// The content of the file.
#[derive(Default)]
pub(super) struct Dotenv {
    /// Names and values, in the order of the file.
    pub(super) variables: Vec<(String, String)>,
    pub(super) problems: Vec<Problem>,
    /// The names of the variables whose entries cannot be read.
    pub(super) broken: Vec<String>,
    /// True when the file exists but none of it can be read.
    pub(super) is_unread: bool,
}

impl Dotenv {
    fn unread(problem: Problem) -> Self {
        Self { problems: vec![problem], is_unread: true, ..Self::default() }
    }
}

/// Reads the file, if it exists. Each entry that cannot be read becomes a problem.
pub(super) fn read(path: &Path) -> Dotenv {
    let text = match is_there(path) {
        Ok(true) => files::read(path),
        Ok(false) => return Dotenv::default(),
        Err(problem) => Err(problem),
    };
    match text {
        Ok(text) => parse(path, &text),
        Err(problem) => Dotenv::unread(problem),
    }
}

fn parse(path: &Path, text: &str) -> Dotenv {
    let mut found = Dotenv::default();
    let lines_read = Cell::new(0_usize);
    let lines = OneByOne { rest: text.as_bytes(), lines_read: &lines_read };
    for entry in dotenvy::from_read_iter(lines) {
        match entry {
            Ok(variable) => found.variables.push(variable),
            Err(dotenvy::Error::LineParse(entry, _)) => {
                // A quoted entry can span several lines.
                let count = entry.lines().count().max(1);
                let first = (lines_read.get() + 1).saturating_sub(count);
                found.problems.push(line_problem(path, Some(first), BROKEN.to_owned()));
                // An unclosed quote swallows the lines that follow.
                let lines = text.lines().skip(first.saturating_sub(1)).take(count);
                found.broken.extend(lines.filter_map(name));
            }
            Err(_) => {
                found.problems.push(file_problem(path, BROKEN.to_owned()));
                found.is_unread = true;
                break;
            }
        }
    }
    found
}

/// The variable name at the start of a line.
fn name(line: &str) -> Option<String> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(line.len());
    (end > 0).then(|| line[..end].to_owned())
}

/// Yields the lines of `.env` one at a time and counts them, because the parser does not report the
/// line at which it stops.
struct OneByOne<'a> {
    rest: &'a [u8],
    lines_read: &'a Cell<usize>,
}

impl io::Read for OneByOne<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let end =
            self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |i| i + 1);
        let (mut line, rest) = self.rest.split_at(end.min(into.len()));
        if !line.is_empty() && (rest.is_empty() || line.ends_with(b"\n")) {
            self.lines_read.set(self.lines_read.get() + 1);
        }
        self.rest = rest;
        line.read(into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_entry_is_told_and_every_other_is_read() {
        let text = "A=1\nREDIS_URL=redis://h and more\nB=2\nexport PORT=8 0\nC=3\n";
        let found = parse(Path::new("/x/.env"), text);
        let read: Vec<&str> = found.variables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(read, ["A", "B", "C"]);
        assert_eq!(found.broken, ["REDIS_URL", "PORT"]);
        let told: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert!(told[0].starts_with("/x/.env:2: cannot be read"), "{told:?}");
        assert!(told[1].starts_with("/x/.env:4: cannot be read"), "{told:?}");
        assert_eq!(told.len(), 2);
    }

    #[test]
    fn a_quote_that_is_not_closed_takes_what_follows_with_it() {
        let found = parse(Path::new("/x/.env"), "A=1\nREDIS_URL='redis://h\nPORT=1\n");
        assert_eq!((found.variables.len(), found.problems.len()), (1, 1));
        assert_eq!(found.broken, ["REDIS_URL", "PORT"]);
    }
}
