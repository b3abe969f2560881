//! Reads TOML: the values with their line numbers, and all syntax problems at once.

use std::{collections::BTreeMap, ops::Range};

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error},
};

use super::{
    given::{is_plain, toml_message},
    keys::join,
};

/// A problem of a text.
pub(super) struct TextProblem {
    pub(super) line: usize,
    pub(super) message: String,
}

/// The content of a text. The readable parts of a text with problems are read.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) root: Map<String, Value>,
    /// The line of each key.
    pub(super) lines: BTreeMap<String, usize>,
    pub(super) problems: Vec<TextProblem>,
    /// The keys whose values are lost.
    pub(super) unclear: Vec<String>,
}

/// Reads a text.
pub(super) fn parse(text: &str) -> Parsed {
    let mut readable = text.to_owned();
    let mut errors: Vec<Mistake> = Vec::new();
    loop {
        let (table, found) = DeTable::parse_recoverable(&readable);
        let found: Vec<Mistake> = found.iter().map(Mistake::from).collect();
        let mut reader = Reader::new(text, &found);
        reader.parsed.root = reader.table(table.get_ref(), "");
        // The parser drops everything after a line that is not an entry, so such a line is replaced
        // by a blank one.
        let is_stray = |mistake: &Mistake| !reader.is_lost(mistake.span.start);
        let lines: Vec<Range<usize>> = found
            .iter()
            .filter(|mistake| is_stray(mistake))
            .map(|mistake| line_around(&readable, mistake.span.start))
            .filter(|line| header(&readable[line.clone()]).is_none())
            .filter(|line| !readable[line.clone()].trim().is_empty())
            .collect();
        if lines.is_empty() {
            errors.extend(found);
            errors.sort_by_key(|mistake| mistake.span.start);
            for mistake in &errors {
                reader.report(mistake);
            }
            return reader.parsed;
        }
        let on_a_line = |mistake: &Mistake| {
            lines
                .iter()
                .any(|line| line.contains(&mistake.span.start) || line.end == mistake.span.start)
        };
        errors.extend(found.into_iter().filter(on_a_line));
        for line in lines {
            let blank = " ".repeat(line.len());
            readable.replace_range(line, &blank);
        }
    }
}

/// Reads `text` as one value; invalid TOML stays text, which the check then refuses.
pub(super) fn parse_value(text: &str) -> Value {
    let mut parsed = parse(&format!("value = {text}"));
    let value = parsed.root.remove("value").filter(|_| parsed.problems.is_empty());
    value.unwrap_or_else(|| Value::from(text))
}

/// The parser's message and the text that it concerns.
struct Mistake {
    span: Range<usize>,
    message: String,
}

impl From<&Error> for Mistake {
    fn from(error: &Error) -> Self {
        Self { span: error.span().unwrap_or_default(), message: error.message().to_owned() }
    }
}

struct Reader<'t> {
    text: &'t str,
    /// Where the mistakes are.
    mistakes: Vec<Range<usize>>,
    /// The values that hold a mistake.
    lost: Vec<Range<usize>>,
    parsed: Parsed,
}

impl<'t> Reader<'t> {
    fn new(text: &'t str, mistakes: &[Mistake]) -> Self {
        let mistakes = mistakes.iter().map(|mistake| mistake.span.clone()).collect();
        Self { text, mistakes, lost: Vec::new(), parsed: Parsed::default() }
    }

    fn table(&mut self, table: &DeTable<'_>, path: &str) -> Map<String, Value> {
        let mut entries = Map::new();
        for (name, value) in table {
            let key = join(path, name.get_ref());
            self.parsed.lines.insert(key.clone(), self.line(name.span().start));
            if let Some(value) = self.value(value, &key) {
                entries.insert(name.get_ref().to_string(), value);
            }
        }
        entries
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Value> {
        let span = value.span();
        // The span of a table with a header is its header.
        let has_header = value.get_ref().is_table() && !self.text[span.start..].starts_with('{');
        if !has_header && self.mistakes.iter().any(|mistake| touches(&span, mistake)) {
            self.lose(span, key);
            return None;
        }
        Some(match value.get_ref() {
            DeValue::String(text) => Value::from(text.as_ref()),
            DeValue::Boolean(flag) => Value::from(*flag),
            DeValue::Integer(number) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Value::from(number),
                    Err(_) => Value::from(number.as_str().parse().unwrap_or(f64::MAX)),
                }
            }
            DeValue::Float(number) => Value::from(number.as_str().parse().unwrap_or(f64::NAN)),
            // No key accepts one. A table is refused in every other place, too.
            DeValue::Datetime(_) => Value::Object(Map::new()),
            DeValue::Array(items) => {
                let mut list = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let key = format!("{key}.{index}");
                    self.parsed.lines.insert(key.clone(), self.line(item.span().start));
                    list.extend(self.value(item, &key));
                }
                Value::Array(list)
            }
            DeValue::Table(table) => Value::Object(self.table(table, key)),
        })
    }

    /// A value with an error in it. An unclosed quote or bracket swallows the tables that follow.
    fn lose(&mut self, span: Range<usize>, key: &str) {
        self.parsed.unclear.push(key.to_owned());
        let headers = self.text[span.clone()].lines().skip(1).filter_map(header);
        self.parsed.unclear.extend(headers);
        self.lost.push(span);
    }

    fn lost_around(&self, offset: usize) -> Option<&Range<usize>> {
        self.lost.iter().find(|lost| touches(lost, &(offset..offset)))
    }

    fn is_lost(&self, offset: usize) -> bool {
        self.lost_around(offset).is_some()
    }

    /// The parser can report one mistake several times, so each line and each value gets one
    /// problem only.
    fn report(&mut self, mistake: &Mistake) {
        let start = mistake.span.start;
        let line = self.line(start);
        let first_of_lost = self.lost_around(start).and_then(|lost| {
            let starts = self.mistakes.iter().map(|mistake| mistake.start);
            starts.filter(|start| touches(lost, &(*start..*start))).min()
        });
        let is_repeated = self.parsed.problems.iter().any(|problem| problem.line == line)
            || first_of_lost.is_some_and(|first| first < start);
        if is_repeated {
            return;
        }
        if first_of_lost.is_none() {
            self.parsed.unclear.extend(self.key_near(start));
        }
        let column = self.text[..start].chars().rev().take_while(|c| *c != '\n').count() + 1;
        let message = if mistake.message == "duplicate key" {
            self.duplicate(&mistake.span)
        } else {
            mistake.message.clone()
        };
        let message = format!("column {column}: {}", toml_message(&message));
        self.parsed.problems.push(TextProblem { line, message });
    }

    fn duplicate(&self, span: &Range<usize>) -> String {
        let name = &self.text[span.clone()];
        let is_header = header(self.line_at(span.start)).is_some();
        match self.table_at(span.start) {
            Some(table) if !is_header => format!("duplicate key `{name}` in table `{table}`"),
            _ => format!("duplicate key `{name}` in document root"),
        }
    }

    /// The key of the line at `offset`; its table if the line has no key.
    fn key_near(&self, offset: usize) -> Option<String> {
        let line = self.line_at(offset);
        if let Some(table) = header(line) {
            return Some(table);
        }
        let end = line.find(|c: char| !is_plain(c.encode_utf8(&mut [0; 4])));
        let key = line[..end.unwrap_or(line.len())].trim_end_matches('.');
        match (self.table_at(offset), key) {
            (table, "") => table,
            (table, key) => Some(join(&table.unwrap_or_default(), key)),
        }
    }

    /// The table that contains the line at `offset`.
    fn table_at(&self, offset: usize) -> Option<String> {
        let start = line_around(self.text, offset).start;
        self.text[..start].lines().rev().find_map(header)
    }

    fn line_at(&self, offset: usize) -> &str {
        self.text[line_around(self.text, offset)].trim_start()
    }

    fn line(&self, offset: usize) -> usize {
        self.text[..offset].matches('\n').count() + 1
    }
}

/// The table whose header is on this line, even if the header is malformed.
fn header(line: &str) -> Option<String> {
    let name = line.trim().strip_prefix('[')?.trim_start_matches('[');
    let name = name.split([']', '#', '=', '{']).next().unwrap_or_default().trim();
    (!name.is_empty() && is_plain(name)).then(|| name.to_owned())
}

/// The range of the line at `offset`, without its line end.
fn line_around(text: &str, offset: usize) -> Range<usize> {
    let start = text[..offset].rfind('\n').map_or(0, |end| end + 1);
    start..text[offset..].find('\n').map_or(text.len(), |length| offset + length)
}

fn touches(outer: &Range<usize>, error: &Range<usize>) -> bool {
    error.start <= outer.end && error.end >= outer.start
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(parsed: &Parsed) -> Vec<String> {
        parsed.problems.iter().map(|it| format!("{}: {}", it.line, it.message)).collect()
    }

    #[test]
    fn the_line_of_a_key_is_found_in_nested_tables() {
        let text = "# comment\n[a]\nx = 1\n\n[a.b]\ny = 2\ninline = { z = 3 }\nlist = [\n1,\n2]\n";
        let lines = parse(text).lines;
        for (key, line) in [("a", 2), ("a.x", 3), ("a.b", 5), ("a.b.y", 6), ("a.b.inline.z", 7)] {
            assert_eq!(lines[key], line, "{key}");
        }
        assert_eq!((lines["a.b.list"], lines["a.b.list.1"]), (8, 10));
    }

    #[test]
    fn what_can_be_read_of_a_broken_text_is_read() {
        let text = "[a]\nx = \"open\ny = 2\n[b\nz = 3\n[c]\nv 4\nw = 5\nu = 08\n";
        let parsed = parse(text);
        assert_eq!(Value::from(parsed.root.clone()), json!({"a": {"y": 2}, "c": {"w": 5}}));
        assert_eq!(parsed.unclear, ["a.x", "c.u", "b", "c.v"]);
        let lines: Vec<usize> = parsed.problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [2, 4, 7, 9], "{:?}", told(&parsed));
    }

    #[test]
    fn a_mistake_is_told_once_however_much_it_swallows() {
        let text =
            "[auth]\nkeys = [\n  { name = \"a\" }\n[server]\nport = 1\n[outbox]\nbatch = 1\n";
        let parsed = parse(text);
        assert_eq!(parsed.problems.len(), 1, "{:?}", told(&parsed));
        assert_eq!(parsed.unclear, ["auth.keys", "server", "outbox"]);
        let text = "[auth]\nmode = \"\"\"none\n[server]\nport = 1\n";
        let parsed = parse(text);
        assert_eq!(parsed.problems.len(), 1, "{:?}", told(&parsed));
        assert_eq!(parsed.unclear, ["auth.mode", "server"]);
    }

    #[test]
    fn duplicates_are_named_with_their_table() {
        let text = "[a]\nx = 1\nx = 2\n[b.c]\nd.e = 1\nz = 1\nz = 2\n[a]\ny = 1\n";
        assert_eq!(
            told(&parse(text)),
            [
                "3: column 1: duplicate key `x` in table `a`",
                "7: column 1: duplicate key `z` in table `b.c`",
                "8: column 2: duplicate key `a` in document root"
            ]
        );
    }

    #[test]
    fn a_value_is_read_as_its_type_and_text_that_is_none_stays_text() {
        for (text, value) in [
            ("1", json!(1)),
            ("0x1f", json!(31)),
            ("0.5", json!(0.5)),
            ("true", json!(true)),
            ("[\"a\", 2]", json!(["a", 2])),
            ("{ a = 1 }", json!({"a": 1})),
            ("abc", json!("abc")),
            ("", json!("")),
            ("1\nother = 2", json!(1)),
        ] {
            assert_eq!(parse_value(text), value, "{text:?}");
        }
    }
}
