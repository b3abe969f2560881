//! Configuration: from files and environment to one checked [`Config`].
//!
//! [`load`] merges the layers, checks them against one JSON schema (which also carries limits,
//! defaults and documentation) and reports every problem at once. Nothing reads the environment
//! after it.

mod auth;
mod changes;
mod connection;
mod default_file;
mod dotenv;
mod given;
mod outbox;
mod policies;
mod problem;
mod production;
mod reference;
mod schema;
mod section;
mod server;
mod service;
mod show;
mod sources;
mod telemetry;
mod tree;
mod validate;
pub mod values;
mod workflows;

use std::{collections::BTreeMap, path::Path};

use figment::value::Value as FigmentValue;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    auth::{ApiKey, Auth, AuthMode, Scope},
    connection::{Connection, Pool, Probe, Startup},
    given::given,
    outbox::Outbox,
    policies::{CircuitBreaker, Concurrency, Jitter, Retry, RetryBudget, Timeout},
    problem::{ConfigError, Place, Problem},
    section::{
        BackendConfig, BackendDescriptor, IN_THIS_PROCESS, Section, Table, TableProblem,
        WellKnownVariable, verbatim,
    },
    server::{Features, Server, ServerTls},
    service::{Details, EventStream, Executions, Health, HealthHttpStatus, Idempotency},
    show::Setting,
    sources::Sources,
    telemetry::{LogFormat, LogRotation, Telemetry},
    tree::Tree,
    values::{Secret, Size},
    workflows::{Kind, WorkflowConfig},
};
use self::{
    given::given_path,
    problem::Problems,
    schema::{RootSchema, is_secret},
    values::SecretFromFile,
};

/// The checked configuration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The value of `ENVIRONMENT`.
    #[serde(skip)]
    pub environment: String,
    /// The HTTP server.
    pub server: Server,
    /// Run-time feature flags.
    pub features: Features,
    /// The connection that carries events.
    pub event_broker: Connection,
    /// The connection that runs executions.
    pub execution_service: Connection,
    /// The connection that keeps what was accepted.
    pub database: Connection,
    /// What can be executed, by name.
    pub workflows: BTreeMap<String, WorkflowConfig>,
    /// Accepted events, until the broker has them.
    pub outbox: Outbox,
    /// Server-sent events.
    pub event_stream: EventStream,
    /// `Idempotency-Key`.
    pub idempotency: Idempotency,
    /// Executions.
    pub executions: Executions,
    /// `/health`, `/livez`, `/readyz`.
    pub health: Health,
    /// Who may use the API.
    pub auth: Auth,
    /// Logs.
    pub telemetry: Telemetry,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            environment: sources::DEVELOPMENT.to_owned(),
            server: Server::default(),
            features: Features::default(),
            event_broker: Connection::event_broker(),
            execution_service: Connection::execution_service(),
            database: Connection::database(),
            workflows: workflows::compiled(),
            outbox: Outbox::default(),
            event_stream: EventStream::default(),
            idempotency: Idempotency::default(),
            executions: Executions::default(),
            health: Health::default(),
            auth: Auth::default(),
            telemetry: Telemetry::default(),
        }
    }
}

impl Config {
    /// True when `ENVIRONMENT` is `production`.
    #[must_use]
    pub fn is_production(&self) -> bool {
        self.environment == production::PRODUCTION
    }

    /// The three connections by name, in the order in which they are made.
    #[must_use]
    pub fn connections(&self) -> [(&'static str, &Connection); 3] {
        [
            ("database", &self.database),
            ("event_broker", &self.event_broker),
            ("execution_service", &self.execution_service),
        ]
    }

    fn check(&self, problems: &mut Problems<'_>) {
        self.server.check(problems);
        for (name, connection) in self.connections() {
            connection.check(name, problems);
        }
        for (name, workflow) in &self.workflows {
            workflow.check(name, problems);
        }
        self.outbox.check(problems);
        self.executions.check(problems);
        self.auth.check(problems);
        self.telemetry.check(problems);
    }
}

/// A configuration with the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values, typed.
    pub config: Config,
    /// The values, with their places.
    pub tree: Tree,
    /// What is allowed but probably not meant.
    pub warnings: Vec<String>,
    /// Where it came from, for loading it again.
    pub sources: Sources,
    /// What `ENVIRONMENT` says, which after a reload is not always what is in effect.
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
    read(sources, None, backends)
}

/// Loads what the program has `started` with again. It stays in its environment, because another
/// one changes what only a start reads.
///
/// # Errors
/// All problems at once, each with key, place and remedy.
pub fn reload(started: &Loaded, backends: &[BackendDescriptor]) -> Result<Loaded, ConfigError> {
    read(&started.sources, Some(&started.config.environment), backends)
}

fn read(
    sources: &Sources,
    started: Option<&str>,
    backends: &[BackendDescriptor],
) -> Result<Loaded, ConfigError> {
    let schema = RootSchema::new(backends);
    let layers = sources::layers(sources, started, &schema, backends)?;
    let mut list = layers.problems;
    let Some(mut tree) = Tree::merge(layers.figment) else {
        list.push(unreadable(""));
        return Err(ConfigError(list));
    };

    let mut problems = Problems::new(&tree);
    validate::validate(&tree, &schema, &mut problems);
    list.append(&mut problems.list);

    let secrets = resolve_secret_files(&tree, schema.root(), sources, &mut list);
    for (key, file_key, secret) in secrets {
        tree.put_secret(&key, &file_key, &secret);
    }
    if !list.is_empty() {
        return Err(ConfigError(list));
    }

    let config =
        typed(&tree, layers.environment, backends).map_err(|problem| ConfigError(vec![problem]))?;
    let mut problems = Problems::new(&tree);
    config.check(&mut problems);
    check_backends(&config, backends, &mut problems);
    production::check(&config, &tree, backends, &mut problems);
    let list = problems.list;
    if !list.is_empty() {
        return Err(ConfigError(list));
    }
    let settings = show::settings(&tree, &schema);
    let sources = sources.clone();
    let (warnings, named_environment) = (layers.warnings, layers.named_environment);
    Ok(Loaded { config, tree, warnings, sources, named_environment, settings })
}

/// Reads each `x_file` and gives its content to `x`.
fn resolve_secret_files(
    tree: &Tree,
    schema: &Value,
    sources: &Sources,
    problems: &mut Vec<Problem>,
) -> Vec<(String, String, SecretFromFile)> {
    let mut found = Vec::new();
    secret_keys(schema, "", &mut found);
    let mut resolved = Vec::new();
    for key in found {
        let file_key = format!("{key}_file");
        let Some(path) = tree.find(&file_key).and_then(FigmentValue::as_str) else { continue };
        let place = tree.place(&file_key);
        let mut problem = |message: String| {
            problems.push(Problem {
                key: file_key.clone(),
                place: place.clone(),
                message,
                suggestion: None,
            });
        };
        let inline = tree.place(&key).filter(|place| !place.is_compiled());
        if tree.find(&key).is_some()
            && let Some(inline) = inline
        {
            let name = key.rsplit('.').next().unwrap_or_default();
            problem(format!("{name} is also set ({inline}); give only one of the two"));
            continue;
        }
        let file = sources.working_dir.join(path);
        let shown = given_path(path);
        match read_secret(&file) {
            Ok(value) if value.is_empty() => problem(format!("{shown} is empty")),
            Ok(value) => {
                let secret = SecretFromFile { value, file };
                resolved.push((key, file_key, secret));
            }
            Err(error) => {
                let hint = sources::wrong_mount(&file).map(|hint| format!("; {hint}"));
                problem(format!("{shown} cannot be read: {error}{}", hint.unwrap_or_default()));
            }
        }
    }
    resolved
}

/// Reads a secret from its file; editors and `echo` end files with a line break that is no part
/// of it.
///
/// # Errors
/// When the file cannot be read.
pub fn read_secret(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

fn secret_keys(schema: &Value, prefix: &str, keys: &mut Vec<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if is_secret(inner) {
            keys.push(key);
        } else {
            secret_keys(inner, &key, keys);
        }
    }
}

/// The checked tree as types. The backends' tables are taken out, for the backends to read.
fn typed(
    tree: &Tree,
    environment: String,
    backends: &[BackendDescriptor],
) -> Result<Config, Problem> {
    let mut root = serde_json::to_value(&tree.root).unwrap_or_default();
    let mut tables: BTreeMap<&str, BTreeMap<String, Section>> = BTreeMap::new();
    for backend in backends {
        let table = root[backend.family].as_object_mut().and_then(|t| t.remove(backend.name));
        if let Some(table) = table {
            tables
                .entry(backend.family)
                .or_default()
                .insert(backend.name.to_owned(), Section(table));
        }
    }
    let mut config = Config { environment, ..Config::default() };
    take(&mut root, "server", &mut config.server)?;
    take(&mut root, "features", &mut config.features)?;
    take(&mut root, "event_broker", &mut config.event_broker)?;
    take(&mut root, "execution_service", &mut config.execution_service)?;
    take(&mut root, "database", &mut config.database)?;
    take(&mut root, "workflows", &mut config.workflows)?;
    take(&mut root, "outbox", &mut config.outbox)?;
    take(&mut root, "event_stream", &mut config.event_stream)?;
    take(&mut root, "idempotency", &mut config.idempotency)?;
    take(&mut root, "executions", &mut config.executions)?;
    take(&mut root, "health", &mut config.health)?;
    take(&mut root, "auth", &mut config.auth)?;
    take(&mut root, "telemetry", &mut config.telemetry)?;
    for (family, connection) in [
        ("event_broker", &mut config.event_broker),
        ("execution_service", &mut config.execution_service),
        ("database", &mut config.database),
    ] {
        connection.backends = tables.remove(family).unwrap_or_default();
    }
    Ok(config)
}

/// Takes one section out of the tree, as its type.
fn take<T: DeserializeOwned>(root: &mut Value, key: &str, into: &mut T) -> Result<(), Problem> {
    let Some(value) = root.as_object_mut().and_then(|root| root.remove(key)) else {
        return Ok(());
    };
    *into = serde_json::from_value(value).map_err(|_| unreadable(key))?;
    Ok(())
}

/// What the check against the schema rules out. The reader's message can repeat values, so it is
/// not shown.
fn unreadable(key: &str) -> Problem {
    Problem {
        key: key.to_owned(),
        place: None,
        message: section::UNREADABLE.to_owned(),
        suggestion: None,
    }
}

/// The backends check their own tables; only the chosen one must be complete.
fn check_backends(config: &Config, backends: &[BackendDescriptor], problems: &mut Problems<'_>) {
    for (family, connection) in config.connections() {
        let chosen = backends
            .iter()
            .find(|backend| backend.family == family && backend.name == connection.backend);
        match chosen.map(|backend| &backend.table) {
            Some(Table::Known { check, .. }) => {
                let table =
                    connection.backends.get(&connection.backend).cloned().unwrap_or_default();
                for (key, message) in check(&table.0) {
                    problems.add(&format!("{family}.{}.{key}", connection.backend), message);
                }
            }
            Some(Table::CompiledOut { feature }) => problems.add(
                &format!("{family}.backend"),
                format!(
                    "{:?} is not part of this build; build with `--features {feature}`",
                    connection.backend
                ),
            ),
            None => {}
        }
    }
}
