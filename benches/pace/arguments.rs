//! The arguments, which choose what is measured, and how long.

use std::{path::PathBuf, time::Duration};

use strum::{EnumString, IntoStaticStr, VariantArray};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub(crate) enum Row {
    UnderLoad,
    Drain,
    Stub,
    Far,
    Held,
    Cost,
    Endings,
    EndToEnd,
}

impl Row {
    pub(crate) fn name(self) -> &'static str {
        self.into()
    }

    /// The databases among `wanted` that it is about.
    pub(crate) fn databases(self, wanted: &[DatabaseKind]) -> &[DatabaseKind] {
        match self {
            // `SQLite` is in the process: nothing is far away.
            Self::Far if wanted.contains(&DatabaseKind::Postgres) => &[DatabaseKind::Postgres],
            Self::Far => &[],
            _ => wanted,
        }
    }
}

/// The database of our service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub(crate) enum DatabaseKind {
    Sqlite,
    Postgres,
}

impl DatabaseKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) rows: Vec<Row>,
    pub(crate) databases: Vec<DatabaseKind>,
    pub(crate) rounds: usize,
    count: Option<usize>,
    seconds: Option<u64>,
    clients: Option<usize>,
    /// Round trips to the database that is far away.
    pub(crate) round_trips: Vec<Duration>,
    pub(crate) json: PathBuf,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            databases: Vec::new(),
            rounds: 5,
            count: None,
            seconds: None,
            clients: None,
            round_trips: vec![Duration::from_micros(1250)],
            json: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("pace.json"),
        }
    }
}

impl Arguments {
    /// # Errors
    /// An argument that is not known, with those that are.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Self::default();
        // Cargo itself adds `--bench`.
        for word in words.filter(|word| !word.starts_with("--")) {
            arguments.take(&word).ok_or_else(|| unknown(&word))?;
        }
        if arguments.rows.is_empty() {
            arguments.rows = Row::VARIANTS.to_vec();
        }
        if arguments.databases.is_empty() {
            arguments.databases = DatabaseKind::VARIANTS.to_vec();
        }
        Ok(arguments)
    }

    fn take(&mut self, word: &str) -> Option<()> {
        match (word.split_once('='), word.parse::<Row>(), word.parse::<DatabaseKind>()) {
            (Some((name, value)), ..) => self.set(name, value)?,
            (None, Ok(row), _) => self.rows.push(row),
            (None, _, Ok(database)) => self.databases.push(database),
            (None, Err(_), Err(_)) => return None,
        }
        Some(())
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "rounds" => self.rounds = value.parse().ok().filter(|&rounds| rounds > 0)?,
            "count" => self.count = Some(value.parse().ok()?),
            "seconds" => self.seconds = Some(value.parse().ok()?),
            "clients" => self.clients = Some(value.parse().ok()?),
            "rtt" => {
                let each = value.split(',').map(milliseconds);
                self.round_trips = each.collect::<Option<_>>()?;
            }
            "json" => self.json = value.into(),
            _ => return None,
        }
        Some(())
    }

    pub(crate) fn count(&self, usual: usize) -> usize {
        self.count.unwrap_or(usual)
    }

    pub(crate) fn lasts(&self, usual_seconds: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(usual_seconds))
    }

    pub(crate) fn clients(&self, usual: usize) -> usize {
        self.clients.unwrap_or(usual)
    }
}

fn milliseconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.parse::<f64>().ok()? / 1e3).ok()
}

fn unknown(word: &str) -> String {
    let (rows, databases) = (Row::VARIANTS, DatabaseKind::VARIANTS);
    let rows: Vec<&str> = rows.iter().map(|&row| row.into()).collect();
    let databases: Vec<&str> = databases.iter().map(|&database| database.into()).collect();
    format!(
        "{word} is not understood. Rows: {}. Databases: {}. Also rounds=5, count=20000, seconds=20, \
         clients=64, rtt=1.25,2,20 (milliseconds), json=FILE",
        rows.join(", "),
        databases.join(", ")
    )
}
