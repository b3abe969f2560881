//! Problems of a configuration, each with its key, its place and a remedy.

use std::{fmt, path::PathBuf};

use super::{
    given::given_key,
    keys::{overlap, variable_name},
    suggest::{children, closest},
};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Compiled into the program.
    Default,
    /// Compiled into the program, for production only.
    ProductionDefault,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from one, where it could be found.
        line: Option<usize>,
    },
    /// An environment variable, perhaps of a `.env` file.
    Variable {
        /// Its name.
        name: String,
        /// The `.env` file that sets it.
        file: Option<PathBuf>,
    },
    /// The command line.
    CommandLine,
}

impl Place {
    /// True when the value is compiled in.
    pub(super) fn is_compiled(&self) -> bool {
        matches!(self, Self::Default | Self::ProductionDefault)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("compiled default"),
            Self::ProductionDefault => f.write_str("compiled default for production"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Variable { name, file: None } => f.write_str(name),
            Self::Variable { name, file: Some(file) } => write!(f, "{name} ({})", file.display()),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The key, such as `server.port`; empty for a whole file.
    pub key: String,
    /// Where it was written; `None` for a missing key.
    pub place: Option<Place>,
    /// The value found and the one expected.
    pub message: String,
    /// The key or value that was probably meant, in the same form as the wrong one.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A problem with the content of `place`, whichever keys it sets.
    pub(super) fn at(place: Place, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { key: String::new(), place: Some(place), message, suggestion: None }
    }

    /// True when both report the same problem of the same key, wherever it was written.
    pub(super) fn says_the_same_as(&self, other: &Self) -> bool {
        self.key == other.key && self.message == other.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(Place::Default) | None => {}
            Some(place) => write!(f, "{place}: ")?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean `{suggestion}`?")?;
        }
        Ok(())
    }
}

/// All problems of a configuration. The `Display` text is the report for the operator.
#[derive(Clone, Debug)]
pub struct ConfigError(pub Vec<Problem>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {count} {noun}:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

/// Knows where each key was written.
pub(super) trait Places {
    /// Where the value at `key` was written; for a missing one, where its table was.
    fn place(&self, key: &str) -> Option<Place>;
}

/// Keys whose values are unknown, because the written value is unusable and already reported. A
/// problem that depends on such a value may not exist, so it is not reported.
#[derive(Debug, Default)]
pub(super) struct Unclear {
    keys: Vec<String>,
    /// True when a whole file could not be read, so any key that is not set elsewhere is unknown.
    unwritten: bool,
}

impl Unclear {
    pub(super) fn add(&mut self, key: impl Into<String>) {
        self.keys.push(key.into());
    }

    pub(super) fn extend(&mut self, keys: impl IntoIterator<Item = String>) {
        self.keys.extend(keys);
    }

    pub(super) fn add_unwritten(&mut self) {
        self.unwritten = true;
    }

    /// Whether the value at exactly this key is known to be unusable.
    pub(super) fn contains(&self, key: &str) -> bool {
        self.keys.iter().any(|unclear| unclear == key)
    }

    /// Whether the value at `key`, or a part of it, is unknown.
    pub(super) fn affects(&self, key: &str, place: Option<&Place>) -> bool {
        let unwritten = self.unwritten && place.is_none_or(Place::is_compiled);
        unwritten || self.keys.iter().any(|unclear| overlap(unclear, key))
    }
}

/// Collects problems.
pub(super) struct Problems<'a> {
    places: &'a dyn Places,
    unclear: &'a Unclear,
    pub(super) list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(places: &'a dyn Places, unclear: &'a Unclear) -> Self {
        Self { places, unclear, list: Vec::new() }
    }

    /// A collector for the problems of one section.
    pub(super) fn section<'p>(&'p mut self, path: &'p str) -> SectionProblems<'p, 'a> {
        SectionProblems { path, problems: self }
    }

    /// Adds a problem with the value at `key`.
    pub(super) fn add(&mut self, key: &str, message: impl Into<String>) {
        self.push(key, message.into(), None);
    }

    /// Adds a problem with the value at `key`, which is probably a misspelt `suggestion`.
    pub(super) fn add_suggesting(
        &mut self,
        key: &str,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.push(key, message.into(), suggestion);
    }

    /// Adds an unknown key. Returns the key that was probably meant.
    pub(super) fn add_unknown(&mut self, key: &str, known: &[String]) -> Option<String> {
        let meant = closest(key, known);
        let message = if meant.is_some() {
            "unknown key".to_owned()
        } else {
            let (parent, _) = key.rsplit_once('.').unwrap_or(("", key));
            format!("unknown key; expected {}", children(parent, known))
        };
        let suggestion = meant.as_ref().map(|meant| match self.places.place(key) {
            Some(Place::Variable { .. }) => variable_name(meant),
            _ => meant.clone(),
        });
        self.push(key, message, suggestion);
        meant
    }

    /// Whether the value at `key` is unknown.
    pub(super) fn is_unclear(&self, key: &str) -> bool {
        self.unclear.affects(key, self.places.place(key).as_ref())
    }

    fn push(&mut self, key: &str, message: String, suggestion: Option<String>) {
        if self.is_unclear(key) {
            return;
        }
        let place = self.places.place(key);
        let key = given_key(key).to_owned();
        self.list.push(Problem { key, place, message, suggestion });
    }
}

/// Collects problems of one section. Keys are relative to it.
pub(super) struct SectionProblems<'p, 'a> {
    path: &'p str,
    problems: &'p mut Problems<'a>,
}

impl SectionProblems<'_, '_> {
    /// The name of the section.
    pub(super) fn path(&self) -> &str {
        self.path
    }

    /// Adds a problem with the value at `key`.
    pub(super) fn add(&mut self, key: &str, message: impl Into<String>) {
        self.problems.add(&self.key(key), message);
    }

    /// Adds a problem with the value at `key`, which is probably a misspelt `suggestion`.
    pub(super) fn add_suggesting(
        &mut self,
        key: &str,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.problems.add_suggesting(&self.key(key), message, suggestion);
    }

    /// Adds a problem that `key` has together with `others`.
    pub(super) fn add_conflict(&mut self, key: &str, others: &[&str], message: impl Into<String>) {
        if others.iter().all(|other| !self.problems.is_unclear(&self.key(other))) {
            self.add(key, message);
        }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_takes_what_is_above_and_below_with_it() {
        let mut unclear = Unclear::default();
        unclear.add("auth.keys");
        for (key, affected) in [
            ("auth", true),
            ("auth.keys", true),
            ("auth.keys.0.sha256", true),
            ("auth.keys_file", false),
            ("auth.mode", false),
        ] {
            assert_eq!(unclear.affects(key, None), affected, "{key}");
        }
        unclear.add_unwritten();
        assert!(unclear.affects("auth.mode", None));
        assert!(unclear.affects("auth.mode", Some(&Place::ProductionDefault)));
        assert!(!unclear.affects("auth.mode", Some(&Place::CommandLine)));
    }
}
