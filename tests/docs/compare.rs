//! Compares what a command prints with what a page shows.

use std::sync::LazyLock;

use regex::Regex;
use snapbox::{Assert, Data, assert::Action, data::DataFormat};

/// Patterns of text that differs from run to run, applied in this order, and their placeholders.
static REDACTIONS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\x1b\[[0-9;]*m", ""),
        (r"\b00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]\b", "TRACE"),
        (r#""next_cursor":"[^"]*""#, r#""next_cursor":"CURSOR""#),
        (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "ID"),
        (r"\b\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"),
        (r"\b\d{10}\.\d{3,6}\b", "SECONDS"),
        (r"\b\d{13}-\d+\b", "PLACE"),
        (r"\baak_[0-9a-f]{64}\b", "KEY"),
        (r"\b[0-9a-f]{64}\b", "SUM"),
        (r"\b(start_ms|lasted_ms|held_ms)=\d+", "$1=MS"),
        (
            r#""(latency_ms|age_seconds|counted_seconds_ago|(?:accepted|delivered)_per_second|duration_ms|uses)":( ?)[0-9.e-]+"#,
            r#""$1":${2}NUMBER"#,
        ),
        // The width of a column depends on its numbers.
        (r" +\d+ ms\b", " MS"),
        (r" +TIME  RESULT", " TIME  RESULT"),
        (r"(?m)^ +->", " ->"),
        (r"\b(127\.0\.0\.1|localhost):\d{4,5}\b", "$1:PORT"),
    ]
    .map(|(pattern, placeholder)| (Regex::new(pattern).unwrap(), placeholder))
    .into()
});

fn redact(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let text = lines.join("\n").trim_matches('\n').to_owned();
    REDACTIONS.iter().fold(text, |text, (pattern, placeholder)| {
        pattern.replace_all(&text, *placeholder).into_owned()
    })
}

/// In a page, a line `…` stands for any lines, and `…` inside of a line for the rest of it.
fn pattern(shown: &str) -> String {
    let lines = redact(shown);
    let lines = lines.lines().map(|line| match line.trim() {
        "…" => "...\n".to_owned(),
        _ => format!("{}\n", line.replace('…', "[..]")),
    });
    lines.collect()
}

fn compare(printed: &str, mut pattern: String) -> Result<(), String> {
    // Two in a row would require text between them.
    while pattern.contains("...\n...\n") {
        pattern = pattern.replace("...\n...\n", "...\n");
    }
    let mut printed = redact(printed);
    if !printed.is_empty() {
        printed.push('\n');
    }
    let [printed, pattern] =
        [printed, pattern].map(|text| Data::text(text).coerce_to(DataFormat::Text));
    let assert = Assert::new().action(Action::Verify).normalize_paths(false);
    assert.try_eq(None, printed, pattern).map_err(|error| error.to_string())
}

/// True when the output of a command matches the page.
pub(crate) fn same(printed: &str, shown: &str) -> Result<(), String> {
    compare(printed, pattern(shown))
}

/// True when the lines of a page occur in a log, one after the other.
pub(crate) fn within(log: &str, shown: &str) -> Result<(), String> {
    compare(log, format!("...\n{}...\n", pattern(shown)))
}

#[test]
fn what_differs_from_run_to_run_is_the_same_and_nothing_else() {
    let shown = "{\"id\":\"01a208e4-a906-7687-91b7-827305729a76\",\"n\":1}\nb …\n…\nz";
    let printed = "{\"id\":\"01a208e4-a906-7687-91b7-827305729a77\",\"n\":1}\nb 2 3\nc\nd\nz\n";
    same(printed, shown).unwrap();
    same(&printed.replace("\"n\":1", "\"n\":2"), shown).unwrap_err();
    same(&printed.replace("\nz", ""), shown).unwrap_err();
    within(printed, "c\nd").unwrap();
    within(printed, "c\n…\nz").unwrap();
    within(printed, "c\nz").unwrap_err();
    within(printed, "z\nc").unwrap_err();
    same("[..]", "other").unwrap_err();
    same("\n", "").unwrap();
    same("a\\b", "a/b").unwrap_err();
}
