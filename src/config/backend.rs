//! The description of a backend's table, as the configuration needs it.
//!
//! The configuration knows no backend by name. It reads, checks, shows and documents a backend's
//! table from a descriptor that the backend provides.

use std::fmt;

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::error::{Error, ErrorKind};

/// A well-known environment variable that sets a backend's address and selects the backend.
#[derive(Clone, Copy, Debug)]
pub struct WellKnownVariable {
    /// Its name, such as `REDIS_URL`.
    pub name: &'static str,
    /// The key it sets in the backend's table.
    pub key: &'static str,
    /// True when a value of the variable also selects this backend, not only sets the key.
    pub selects: bool,
    /// Reads the variable: `None` when the value is meant for another backend.
    pub read: fn(&str) -> Option<String>,
}

/// Accepts the variable's value unchanged.
#[must_use]
pub fn verbatim(value: &str) -> Option<String> {
    Some(value.to_owned())
}

/// The address shown for a backend that needs no server.
pub const IN_THIS_PROCESS: &str = "in this process";

/// The message for a table that matches its schema but still cannot be read.
pub(super) const UNREADABLE: &str =
    "cannot be read; `agentarea-api config schema` prints what it may hold";

/// A problem that a backend finds in its own table: key and sentence.
pub type TableProblem = (&'static str, String);

/// A backend, as the configuration sees it.
#[derive(Clone, Debug)]
pub struct BackendDescriptor {
    /// The connection it can serve, such as `event_broker`.
    pub family: &'static str,
    /// The value of `backend` and the name of its table.
    pub name: &'static str,
    /// Its well-known variables.
    pub variables: &'static [WellKnownVariable],
    /// True when several processes can share it, as production requires.
    pub shared: bool,
    /// A line that selects it, shown when it is missing.
    pub example: &'static str,
    /// The table, or the missing cargo feature.
    pub table: Table,
}

/// A backend's table.
#[derive(Clone, Debug)]
pub enum Table {
    /// Schema, compiled defaults and check.
    Known {
        /// JSON schema.
        schema: Value,
        /// Compiled defaults.
        defaults: Value,
        /// Checks rules that the schema cannot express.
        check: fn(&Value) -> Vec<TableProblem>,
        /// See [`BackendConfig::place_of_data`].
        place_of_data: fn(&Value) -> Option<String>,
        /// See [`BackendConfig::address`].
        address: fn(&Value) -> Option<String>,
    },
    /// Not part of this build; the table is accepted unread.
    CompiledOut {
        /// The cargo feature that adds it.
        feature: &'static str,
    },
}

/// The settings type of a backend.
pub trait BackendConfig: Serialize + DeserializeOwned + JsonSchema + Default {
    /// Checks rules that the schema cannot express.
    fn check(&self) -> Vec<TableProblem> {
        Vec::new()
    }

    /// Where the backend is, for people and without secrets: host, port and what is used there, a
    /// file, or [`IN_THIS_PROCESS`].
    fn address(&self) -> String;

    /// Where the backend keeps what only it has, without secrets. While the program runs, the
    /// settings may change in everything but this.
    fn place_of_data(&self) -> Option<String> {
        None
    }
}

impl BackendDescriptor {
    /// Where the backend keeps what only it has, if `section` says.
    #[must_use]
    pub fn place_of_data(&self, section: &Section) -> Option<String> {
        match &self.table {
            Table::Known { place_of_data, .. } => place_of_data(&section.0),
            Table::CompiledOut { .. } => None,
        }
    }

    /// Where the backend is, without secrets; empty if this build does not know it.
    #[must_use]
    pub fn address(&self, section: &Section) -> String {
        match &self.table {
            Table::Known { address, .. } => address(&section.0).unwrap_or_default(),
            Table::CompiledOut { .. } => String::new(),
        }
    }
}

impl Table {
    /// The table described by the settings type `C`.
    ///
    /// # Panics
    /// When `C` has no JSON form, which every test that loads a configuration would show.
    #[must_use]
    pub fn of<C: BackendConfig>() -> Self {
        Self::Known {
            schema: schema_of::<C>(),
            defaults: serde_json::to_value(C::default()).expect("settings have a JSON form"),
            check: |value| match serde_json::from_value::<C>(value.clone()) {
                Ok(config) => config.check(),
                // The reader's message can repeat values, so it is not shown.
                Err(_) => vec![("", UNREADABLE.to_owned())],
            },
            place_of_data: |value| {
                serde_json::from_value::<C>(value.clone()).ok().and_then(|c| c.place_of_data())
            },
            address: |value| serde_json::from_value::<C>(value.clone()).ok().map(|c| c.address()),
        }
    }
}

/// The JSON schema of `T`, without references, so that it can be walked.
pub(super) fn schema_of<T: JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// A backend's checked table, for the factory to read. It can hold secrets, so it never prints.
#[derive(Clone, PartialEq)]
pub struct Section(pub(crate) Value);

impl Default for Section {
    /// A table that nobody wrote: all of its keys have their defaults.
    fn default() -> Self {
        Self(Value::Object(serde_json::Map::new()))
    }
}

impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Section(…)")
    }
}

impl Section {
    /// The table as the backend's settings type.
    ///
    /// # Errors
    /// When the table does not fit, which the check at start rules out.
    pub fn read<C: BackendConfig>(&self) -> Result<C, Error> {
        serde_json::from_value(self.0.clone()).map_err(|error| {
            Error::new(ErrorKind::Internal, "the backend's section cannot be read")
                .with_source(error)
        })
    }
}
