//! Configuration: from files and environment to one checked [`Config`].
//!
//! [`load()`] checks each layer against one JSON schema (which also carries limits, defaults and
//! documentation), merges the layers, checks the sections and reports every problem at once.
//! Nothing reads the environment afterwards. [`Config`] and all code that covers every section are
//! generated from one list, in `sections`.
//!
//! figment merges the layers: compiled defaults, each file, each variable and each `--set` is a
//! [`figment::Provider`] with its own metadata, and the tags of the merged values identify the
//! layer that set each value. The crate reads files and variables itself, because figment reports
//! only the first problem, keeps no line numbers, and reads a password of digits as a number.

mod backend;
mod changes;
mod default_file;
mod dotenv;
mod files;
mod given;
mod keys;
mod layer;
mod load;
mod problem;
mod production;
mod reference;
mod schema;
mod secrets;
mod sections;
mod show;
mod sources;
mod suggest;
mod toml_text;
mod tree;
mod validate;
pub mod values;
mod variables;

use serde_json::Value;

use self::schema::RootSchema;
pub use self::{
    backend::{
        BackendConfig, BackendDescriptor, IN_THIS_PROCESS, Section, Table, TableProblem,
        WellKnownVariable, verbatim,
    },
    given::given,
    problem::{ConfigError, Place, Problem},
    secrets::read_secret,
    sections::{
        ApiKey, Auth, AuthMode, CircuitBreaker, Concurrency, Config, Connection, Details,
        EventStream, Executions, Features, Health, HealthHttpStatus, Idempotency, Jitter, Kind,
        LogFormat, LogRotation, Outbox, Pool, Probe, Retry, RetryBudget, Scope, Server, ServerTls,
        Startup, Telemetry, Timeout, WorkflowConfig,
    },
    show::Setting,
    sources::Sources,
    tree::Tree,
    values::{Secret, Size},
};

/// A configuration with the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values, typed.
    pub config: Config,
    /// The values with their origins.
    pub tree: Tree,
    /// Warnings: settings that are allowed but probably not intended.
    pub warnings: Vec<String>,
    /// The sources, for a reload.
    pub sources: Sources,
    /// The value of `ENVIRONMENT`, which after a reload can differ from the environment in effect.
    named_environment: String,
    settings: Vec<Setting>,
}

impl Loaded {
    /// Every effective value with its source, secrets masked.
    #[must_use]
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }
}

/// The JSON schema of the configuration files.
#[must_use]
pub fn json_schema(backends: &[BackendDescriptor]) -> Value {
    RootSchema::new(backends).document()
}

/// `config/default.toml`: every key with meaning, unit, limits and default.
#[must_use]
pub fn default_file(backends: &[BackendDescriptor]) -> String {
    default_file::render(&RootSchema::new(backends))
}

/// `docs/configuration.md`: every key with meaning, unit, limits, default and variable.
#[must_use]
pub fn reference(backends: &[BackendDescriptor]) -> String {
    reference::render(&RootSchema::new(backends), backends)
}

/// Loads and checks the configuration.
///
/// # Errors
/// All problems at once, each with key, place and remedy.
pub fn load(sources: &Sources, backends: &[BackendDescriptor]) -> Result<Loaded, ConfigError> {
    load::load(sources, None, backends)
}

/// Loads the configuration again from the sources of the start. The environment stays the same,
/// because a different one changes settings that only a start reads.
///
/// # Errors
/// All problems at once, each with key, place and remedy.
pub fn reload(started: &Loaded, backends: &[BackendDescriptor]) -> Result<Loaded, ConfigError> {
    load::load(&started.sources, Some(&started.config.environment), backends)
}
