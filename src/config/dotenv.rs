//! `.env`: variables in a file.

use std::{cell::Cell, fs, io, path::Path};

use super::{
    problem::Problem,
    sources::{file_problem, is_there, line_problem},
};

/// What is said of an entry; it is not repeated, because it can hold a secret.
const BROKEN: &str = "cannot be read; expected a line of the form NAME=value, with quotes around a \
    value that has blanks";

/// Names and values, in the order of the file; none if there is no file.
pub(super) fn read(path: &Path) -> Result<Vec<(String, String)>, Problem> {
    if !is_there(path)? {
        return Ok(Vec::new());
    }
    let unreadable = |error: io::Error| file_problem(path, format!("cannot be read: {error}"));
    let text = fs::read_to_string(path).map_err(unreadable)?;
    let lines_read = Cell::new(0_usize);
    let broken = |error: dotenvy::Error| match error {
        dotenvy::Error::Io(error) => unreadable(error),
        dotenvy::Error::LineParse(entry, _) => {
            // An entry in quotes goes on over lines.
            let line = (lines_read.get() + 1).saturating_sub(entry.lines().count().max(1));
            line_problem(path, Some(line), BROKEN.to_owned())
        }
        _ => file_problem(path, BROKEN.to_owned()),
    };
    dotenvy::from_read_iter(OneByOne { rest: text.as_bytes(), lines_read: &lines_read })
        .map(|entry| entry.map_err(broken))
        .collect()
}

/// Hands out the lines of `.env` one at a time and counts them, because its parser does not say in
/// which one it stops.
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
