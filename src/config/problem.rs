//! Problems of a configuration, each with its key, its place and a remedy.

use std::{fmt, path::PathBuf};

use super::{given::given_key, tree::Tree};

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
    /// Whether nobody wrote the value.
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

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The key, such as `server.port`; empty for a whole file.
    pub key: String,
    /// Where it was written, unless it is missing everywhere.
    pub place: Option<Place>,
    /// What was found and what was expected.
    pub message: String,
    /// The key that was probably meant, in the form in which the wrong one was given.
    pub suggestion: Option<String>,
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

/// Everything that is wrong with a configuration. Its text is the report for the operator.
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

/// Collects problems; knows where each key was written.
pub(super) struct Problems<'a> {
    tree: &'a Tree,
    pub(super) list: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        Self { tree, list: Vec::new() }
    }

    /// Adds a problem with the value at `key`.
    pub(super) fn add(&mut self, key: &str, message: impl Into<String>) {
        self.push(key, message.into(), None);
    }

    /// Adds a key that does not exist.
    pub(super) fn add_unknown(&mut self, key: &str, known: &[String]) {
        let suggestion = closest(key, known);
        let message = if suggestion.is_some() {
            "unknown key".to_owned()
        } else {
            let (parent, _) = key.rsplit_once('.').unwrap_or(("", key));
            format!("unknown key; expected {}", children(parent, known))
        };
        self.push(key, message, suggestion);
    }

    fn push(&mut self, key: &str, message: String, suggestion: Option<String>) {
        let place = self.tree.place(key);
        let suggestion = suggestion.map(|key| match &place {
            Some(Place::Variable { .. }) => variable_name(&key),
            _ => key,
        });
        let key = given_key(key).to_owned();
        self.list.push(Problem { key, place, message, suggestion });
    }
}

/// The variable that sets `key`.
pub(super) fn variable_name(key: &str) -> String {
    format!("AGENTAREA_{}", key.replace('.', "__").to_uppercase())
}

/// The known key that `key` was probably meant to be.
pub(super) fn closest(key: &str, known: &[String]) -> Option<String> {
    if let Some(elsewhere) = moved(key, known) {
        return Some(elsewhere);
    }
    let flat = |key: &str| key.replace(['.', '_', '-'], "");
    let wanted = flat(key);
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &flat(candidate)), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= (wanted.len() / 4).clamp(1, 4))
        .map(|(_, candidate)| candidate.clone())
}

/// A key whose last part is unique among the known keys of the same section: `event_broker.url`
/// for `event_broker.redis.url`.
fn moved(key: &str, known: &[String]) -> Option<String> {
    let (section, name) = (key.split('.').next()?, key.rsplit('.').next()?);
    let mut matches = known.iter().filter(|candidate| {
        candidate.split('.').next() == Some(section) && candidate.rsplit('.').next() == Some(name)
    });
    let found = matches.next()?;
    matches.next().is_none().then(|| found.clone())
}

fn children(parent: &str, known: &[String]) -> String {
    let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
    let names: std::collections::BTreeSet<&str> = known
        .iter()
        .filter_map(|key| key.strip_prefix(&prefix))
        .filter_map(|rest| rest.split('.').next())
        .collect();
    if names.is_empty() {
        return "none here".to_owned();
    }
    format!("one of {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        ["server", "server.port", "server.host", "event_broker", "event_broker.redis.url"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn a_typo_finds_the_key_that_was_meant() {
        assert_eq!(closest("server.prot", &known()).as_deref(), Some("server.port"));
        assert_eq!(
            closest("event-broker.redis.url", &known()).as_deref(),
            Some("event_broker.redis.url")
        );
        assert_eq!(
            closest("event_broker.url", &known()).as_deref(),
            Some("event_broker.redis.url")
        );
        assert_eq!(closest("server.colour", &known()), None);
    }

    #[test]
    fn what_cannot_be_guessed_is_answered_with_what_there_is() {
        assert_eq!(children("server", &known()), "one of host, port");
    }
}
