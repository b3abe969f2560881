//! The layers of the configuration and their precedence.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    backend::BackendDescriptor,
    dotenv,
    files::Folder,
    layer::{Layer, Origin, display_path},
    problem::{Problem, Unclear},
    production::PRODUCTION,
    schema::RootSchema,
    variables::{Variable, VariableReader},
};

/// The environment when nothing names one.
pub(super) const DEVELOPMENT: &str = "development";

/// The sources of a configuration, captured once, so that a reload sees the same environment.
#[derive(Clone, Default)]
pub struct Sources {
    /// The folder the user named.
    pub config_dir: Option<PathBuf>,
    /// The process environment.
    pub environment: BTreeMap<String, String>,
    /// `KEY=VALUE` pairs of the command line.
    pub overrides: Vec<(String, String)>,
    /// The directory in which `.env` and the default folder `config/` are looked up.
    pub working_dir: PathBuf,
}

// Variables and overrides can hold secrets.
impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("config_dir", &self.config_dir).finish_non_exhaustive()
    }
}

impl Sources {
    /// The environment, working directory and command line of this process.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn capture(config_dir: Option<PathBuf>, overrides: Vec<(String, String)>) -> Self {
        Self {
            config_dir,
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            overrides,
            working_dir: std::env::current_dir().unwrap_or_default(),
        }
    }

    /// A variable of the process, trimmed, because files of variables often add unintended blanks
    /// and line ends.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(|value| value.trim())
    }
}

/// The layers, lowest first, and the problems found while reading them.
pub(super) struct Layers {
    pub(super) list: Vec<Layer>,
    /// The environment in effect.
    pub(super) environment: String,
    /// The value of `ENVIRONMENT`.
    pub(super) named_environment: String,
    pub(super) problems: Vec<Problem>,
    /// The keys whose values are unknown because of a problem.
    pub(super) unclear: Unclear,
    pub(super) warnings: Vec<String>,
}

/// Reads all layers; later ones win. A reload keeps the environment in which the program `started`.
pub(super) fn layers(
    sources: &Sources,
    started: Option<&str>,
    schema: &RootSchema,
    backends: &[BackendDescriptor],
) -> Layers {
    let mut unclear = Unclear::default();
    let path = sources.working_dir.join(".env");
    let shown = display_path(&path);
    let dotenv = dotenv::read(&path);
    let mut problems = dotenv.problems;
    let dotenv_variables: Vec<Variable> = dotenv
        .variables
        .iter()
        .map(|(name, value)| Variable::new(name, value, Some(&shown)))
        .collect();
    let process: Vec<Variable> =
        sources.environment.iter().map(|(name, value)| Variable::new(name, value, None)).collect();
    let lookup = |name: &str| {
        process.iter().chain(&dotenv_variables).find(|v| v.name == name && !v.value.is_empty())
    };

    let named_environment = lookup("ENVIRONMENT")
        .and_then(|variable| variable.environment_name().map_err(|it| problems.push(it)).ok())
        .unwrap_or_else(|| DEVELOPMENT.to_owned());
    let environment = started.map_or_else(|| named_environment.clone(), str::to_owned);
    let mut warnings: Vec<String> = misspelt_production(&environment).into_iter().collect();

    let named_folder = sources
        .config_dir
        .clone()
        .or_else(|| lookup("AGENTAREA_CONFIG_DIR").map(|v| PathBuf::from(&v.value)));
    let folder = Folder {
        path: sources.working_dir.join(named_folder.as_deref().unwrap_or(Path::new("config"))),
        is_named: named_folder.is_some(),
        environment: &environment,
        environment_is_named: lookup("ENVIRONMENT").is_some(),
    };
    let files = folder.read(&mut unclear);
    problems.extend(files.problems);
    warnings.extend(files.warnings);
    let default = Layer { origin: Origin::Default, root: schema.defaults().clone() };
    let list = std::iter::once(default).chain(files.layers).collect();

    let mut reader = VariableReader { schema, backends, layers: list, problems, warnings };
    if dotenv.is_unread {
        unclear.add_unwritten();
    }
    for name in &dotenv.broken {
        unclear.extend(reader.unclear_keys(name));
    }
    reader.read(&dotenv_variables, &mut unclear);
    reader.read(&process, &mut unclear);
    let VariableReader { layers: mut list, problems, warnings, .. } = reader;
    list.extend(sources.overrides.iter().map(|(key, value)| {
        Layer::single(Origin::CommandLine, key, schema.parse_text(key, value))
    }));
    Layers { list, environment, named_environment, problems, unclear, warnings }
}

/// Any word is allowed, but only `production` enables the production checks.
fn misspelt_production(environment: &str) -> Option<String> {
    let close = strsim::jaro_winkler(&environment.to_lowercase(), PRODUCTION) > 0.85;
    (close && environment != PRODUCTION).then(|| {
        format!(
            "ENVIRONMENT is {environment:?}, so what production demands is not checked; did you \
             mean `production`?"
        )
    })
}
