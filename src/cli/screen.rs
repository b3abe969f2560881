//! Output that depends on the reader: colours and a progress line for a person at a terminal, plain
//! lines for a pipe.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use crate::config::Sources;

/// How often progress is printed.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The meaning of a text, which sets its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Head,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Head => "1",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Faint => "2",
        }
    }
}

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) is_terminal: bool,
    colours: bool,
}

impl Screen {
    /// `NO_COLOR` is <https://no-color.org>; a `dumb` terminal has no colours.
    pub(super) fn new(sources: &Sources) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let variable = |name| sources.variable(name).unwrap_or_default();
        let wanted = variable("NO_COLOR").is_empty() && variable("TERM") != "dumb";
        Self { is_terminal, colours: is_terminal && wanted }
    }

    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        let code = tone.code();
        if !self.colours || code.is_empty() || text.is_empty() {
            return text.to_owned();
        }
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// A cell of a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(tone: Tone, text: impl Into<String>) -> Self {
        Self { text: text.into(), tone }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(Tone::Plain, text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Aligned columns under a header. Numbers, which end in a unit, are right-aligned.
pub(super) fn table<const N: usize>(
    screen: Screen,
    head: [&str; N],
    numbers: Option<usize>,
    rows: Vec<[Cell; N]>,
) -> String {
    let head = head.map(|title| Cell::new(Tone::Head, title));
    let rows: Vec<[Cell; N]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].text.chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or_default());
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let gap = " ".repeat(widths[column] - cell.text.chars().count());
            let shown = screen.paint(cell.tone, &cell.text);
            if numbers == Some(column) {
                line.extend([gap.as_str(), &shown, "  "]);
            } else {
                line.extend([shown.as_str(), &gap, "  "]);
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints progress on standard error for steps that can take more than a second.
#[derive(Debug)]
pub(super) struct Progress {
    is_terminal: bool,
    told: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_terminal: std::io::stderr().is_terminal(), told: Instant::now() }
    }

    /// A line for a person at a terminal, replaced by the next one.
    pub(super) fn begin(&mut self, text: &str) {
        if self.is_terminal {
            self.write(text);
        }
    }

    /// The same; for a pipe, one line each second.
    pub(super) fn tell(&mut self, text: &str) {
        if self.is_terminal || self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.write(text);
        }
    }

    fn write(&self, text: &str) {
        let line = if self.is_terminal { format!("\r{text}\u{1b}[K") } else { format!("{text}\n") };
        // A closed standard error means that nobody wants progress.
        let _told = std::io::stderr().write_all(line.as_bytes()).is_ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            let _cleared = std::io::stderr().write_all(b"\r\x1b[K").is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_is_seen_and_not_by_the_codes_of_colours() {
        for (colours, good) in [(false, "ok"), (true, "\u{1b}[32mok\u{1b}[0m")] {
            let screen = Screen { is_terminal: colours, colours };
            let rows = vec![
                [Cell::new(Tone::Good, "ok"), "1 ms".into(), "é".into()],
                ["é".into(), "100 ms".into(), Cell::default()],
            ];
            let text = table(screen, ["A", "B", "C"], Some(1), rows);
            let lines: Vec<&str> = text.lines().skip(1).collect();
            assert_eq!(lines, [format!("{good}    1 ms  é"), "é   100 ms".to_owned()]);
        }
    }
}
