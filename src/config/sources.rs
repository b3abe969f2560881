//! The layers of the configuration and the order in which they win.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Profile, Provider, Source,
    providers::{Format, Serialized, Toml},
    value::{Dict, Map, Value},
};

use super::{
    dotenv,
    given::toml_message,
    problem::{ConfigError, Place, Problem, closest, variable_name},
    production::{CompiledIn, PRODUCTION},
    schema::RootSchema,
    section::BackendDescriptor,
    tree::{COMMAND_LINE, DOTENV_SEPARATOR, display_path},
};

/// Prefix of the variables that set any key.
const PREFIX: &str = "AGENTAREA_";
/// The environment when nothing names one.
pub(super) const DEVELOPMENT: &str = "development";
/// Variables without it that set a key, or the environment.
const PLAIN: [&str; 3] = ["ENVIRONMENT", "PORT", "RUST_LOG"];
/// Variables with the prefix that are no keys.
const RESERVED: [&str; 2] = ["AGENTAREA_CONFIG_DIR", "AGENTAREA_KEY_FILE"];

/// Where a configuration comes from, captured once, so that a reload sees the same environment.
#[derive(Clone, Default)]
pub struct Sources {
    /// The folder the user named.
    pub config_dir: Option<PathBuf>,
    /// The process environment.
    pub environment: BTreeMap<String, String>,
    /// `KEY=VALUE` pairs of the command line.
    pub overrides: Vec<(String, String)>,
    /// Where `.env` and the default folder `config/` are looked for.
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

    /// A variable of the process, without what stands around it: a file of variables leaves blanks
    /// and line ends that nobody means.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(|value| value.trim())
    }
}

/// The layers as figment wants them, and what was found on the way.
pub(super) struct Layers {
    pub(super) figment: Figment,
    /// The environment in effect.
    pub(super) environment: String,
    /// The one that `ENVIRONMENT` names.
    pub(super) named_environment: String,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// One variable of the environment or of `.env`.
struct Variable {
    name: String,
    value: String,
    file: Option<PathBuf>,
}

impl Variable {
    /// The variable as it is read everywhere: see [`Sources::variable`].
    fn new(name: &str, value: &str, file: Option<PathBuf>) -> Self {
        Self { name: name.to_owned(), value: value.trim().to_owned(), file }
    }

    fn origin(&self) -> String {
        match &self.file {
            Some(file) => format!("{}{DOTENV_SEPARATOR}{}", self.name, file.display()),
            None => self.name.clone(),
        }
    }

    fn place(&self) -> Place {
        Place::Variable { name: self.name.clone(), file: self.file.clone() }
    }
}

/// One value as a figment layer of its own, so that its origin is known exactly.
struct Single {
    key: String,
    value: Value,
    metadata: Metadata,
}

impl Provider for Single {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let nested = figment::util::nest(&self.key, self.value.clone());
        Ok(Profile::Default.collect(nested.into_dict().unwrap_or_default()))
    }
}

/// A file of the configuration.
struct TomlFile<'a> {
    path: &'a Path,
    text: String,
}

impl<'a> TomlFile<'a> {
    /// Reads the file. One that is no TOML is refused here, because figment's message for it has the
    /// line of the file, on which a secret can stand.
    fn read(path: &'a Path) -> Result<Self, Problem> {
        let text = fs::read_to_string(path)
            .map_err(|error| file_problem(path, format!("cannot be read: {error}")))?;
        match toml_edit::ImDocument::parse(text.as_str()) {
            Ok(_) => Ok(Self { path, text }),
            Err(error) => {
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
                let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
                let message = format!("column {column}: {}", toml_message(error.message()));
                Err(line_problem(path, Some(before.matches('\n').count() + 1), message))
            }
        }
    }
}

impl Provider for TomlFile<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from("TOML file", self.path)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}

/// Puts the layers on top of each other; later wins. A program that runs stays in the environment
/// that it has `started` in.
pub(super) fn layers(
    sources: &Sources,
    started: Option<&str>,
    schema: &RootSchema,
    backends: &[BackendDescriptor],
) -> Result<Layers, ConfigError> {
    let path = sources.working_dir.join(".env");
    let shown = display_path(&path);
    let dotenv: Vec<Variable> = dotenv::read(&path)
        .map_err(|problem| ConfigError(vec![problem]))?
        .iter()
        .map(|(name, value)| Variable::new(name, value, Some(shown.clone())))
        .collect();
    let process: Vec<Variable> =
        sources.environment.iter().map(|(name, value)| Variable::new(name, value, None)).collect();
    let lookup =
        |name: &str| process.iter().chain(&dotenv).find(|v| v.name == name && !v.value.is_empty());
    let (named_environment, refused) = match lookup("ENVIRONMENT").map(environment_name) {
        None => (DEVELOPMENT.to_owned(), None),
        Some(Ok(name)) => (name, None),
        Some(Err(problem)) => (DEVELOPMENT.to_owned(), Some(problem)),
    };

    let mut layers = Layers {
        figment: Figment::from(Serialized::defaults(schema.defaults())),
        environment: started.map_or_else(|| named_environment.clone(), str::to_owned),
        named_environment,
        problems: refused.into_iter().collect(),
        warnings: Vec::new(),
    };
    layers.warn_of_misspelt_production();
    let named = sources
        .config_dir
        .clone()
        .or_else(|| lookup("AGENTAREA_CONFIG_DIR").map(|v| PathBuf::from(&v.value)));
    layers.add_files(sources, named.as_deref(), lookup("ENVIRONMENT").is_some());
    for variables in [&dotenv, &process] {
        layers.check_filled_in(variables, backends);
        layers.add_well_known(variables, backends);
        layers.add_prefixed(variables, schema);
    }
    for (key, value) in &sources.overrides {
        let value = schema.parse_text(key, value);
        layers.merge(key, value, Metadata::named(COMMAND_LINE));
    }
    Ok(layers)
}

impl Layers {
    /// Any word is allowed, but only `production` brings its safety.
    fn warn_of_misspelt_production(&mut self) {
        let name = self.environment.to_lowercase();
        let close = strsim::jaro_winkler(&name, PRODUCTION) > 0.85;
        if close && self.environment != PRODUCTION {
            self.warnings.push(format!(
                "ENVIRONMENT is {:?}, so what production demands is not checked; did you mean \
                 `production`?",
                self.environment
            ));
        }
    }

    fn merge(&mut self, key: &str, value: Value, metadata: Metadata) {
        let layer = Single { key: key.to_owned(), value, metadata };
        self.figment = std::mem::take(&mut self.figment).merge(layer);
    }

    fn merge_variable(&mut self, key: &str, value: Value, variable: &Variable) {
        let metadata = Metadata::from(variable.name.clone(), Source::Custom(variable.origin()));
        self.merge(key, value, metadata);
    }

    fn add_files(&mut self, sources: &Sources, named: Option<&Path>, environment_named: bool) {
        let dir = sources.working_dir.join(named.unwrap_or(Path::new("config")));
        let is_folder = self.check_folder(&dir, named.is_some());
        let own = dir.join(format!("{}.toml", self.environment));
        let has_default = is_folder && self.add_file(&dir.join("default.toml"));
        if self.environment == PRODUCTION {
            // Where the shipped file stands: what is written for all environments does not weaken it.
            self.figment = std::mem::take(&mut self.figment).merge(CompiledIn);
        }
        let has_own = is_folder && self.add_file(&own);
        if is_folder && environment_named && !has_own {
            self.warnings.push(format!(
                "ENVIRONMENT is {:?}, but {} does not exist",
                self.environment,
                display_path(&own).display()
            ));
        }
        if is_folder && named.is_some() && !has_default && !has_own {
            let message = format!(
                "the configuration folder holds neither default.toml nor {}.toml: it holds {}; \
                 mount or name the right one, or leave out --config-dir and AGENTAREA_CONFIG_DIR to \
                 run on compiled defaults",
                self.environment,
                content(&dir)
            );
            self.problems.push(file_problem(&dir, message));
        }
    }

    /// Whether there is a folder. One that nobody `named` may be missing.
    fn check_folder(&mut self, dir: &Path, named: bool) -> bool {
        let message = match fs::metadata(dir) {
            Ok(found) if found.is_dir() => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => return false,
            Ok(_) => "is a file, but the configuration is a folder of files; mount or name the \
                      folder"
                .to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "the configuration folder does not exist; create it, or leave out --config-dir and \
                 AGENTAREA_CONFIG_DIR to run on compiled defaults"
                    .to_owned()
            }
            Err(error) => format!("the configuration folder cannot be read: {error}"),
        };
        self.problems.push(file_problem(dir, message));
        false
    }

    /// Whether there is anything in the place of the file.
    fn add_file(&mut self, path: &Path) -> bool {
        match is_there(path) {
            Ok(false) => return false,
            Ok(true) => match TomlFile::read(path) {
                Ok(file) => self.figment = std::mem::take(&mut self.figment).merge(file),
                Err(problem) => self.problems.push(problem),
            },
            Err(problem) => self.problems.push(problem),
        }
        true
    }

    /// What was to be filled in by a shell or a container engine, and was not.
    fn check_filled_in(&mut self, variables: &[Variable], backends: &[BackendDescriptor]) {
        let of_backend = |name: &str| {
            backends.iter().flat_map(|backend| backend.variables).any(|v| v.name == name)
        };
        for variable in variables {
            let name = variable.name.as_str();
            if !(name.starts_with(PREFIX) || PLAIN.contains(&name) || of_backend(name)) {
                continue;
            }
            if let Some(left) = placeholder(&variable.value) {
                let message = format!(
                    "holds ${{{left}}} as it is written; whatever starts the program has not put \
                     the value of {left} in its place"
                );
                let place = Some(variable.place());
                self.problems.push(Problem {
                    key: String::new(),
                    place,
                    message,
                    suggestion: None,
                });
            }
            if variable.value.is_empty() && of_backend(name) {
                self.warnings
                    .push(format!("{} is empty, so it counts as not set", variable.place()));
            }
        }
    }

    /// `REDIS_URL` and its like: each sets an address and selects the backend.
    fn add_well_known(&mut self, variables: &[Variable], backends: &[BackendDescriptor]) {
        for variable in variables.iter().filter(|v| !v.value.is_empty()) {
            let mut meant_for = Vec::new();
            let mut taken = false;
            for backend in backends {
                for known in backend.variables.iter().filter(|k| k.name == variable.name) {
                    meant_for.push(backend.name);
                    let Some(value) = (known.read)(&variable.value) else { continue };
                    taken = true;
                    let key = format!("{}.{}.{}", backend.family, backend.name, known.key);
                    self.merge_variable(&key, Value::from(value), variable);
                    if known.selects {
                        let key = format!("{}.backend", backend.family);
                        self.merge_variable(&key, Value::from(backend.name), variable);
                    }
                }
            }
            if !meant_for.is_empty() && !taken {
                let examples: Vec<&str> = backends
                    .iter()
                    .filter(|backend| meant_for.contains(&backend.name))
                    .map(|backend| backend.example)
                    .collect();
                self.problems.push(Problem {
                    key: String::new(),
                    place: Some(variable.place()),
                    message: format!("cannot be used; expected {}", examples.join(" or ")),
                    suggestion: None,
                });
            }
            match variable.name.as_str() {
                "PORT" => {
                    let value = super::schema::parse_toml(&variable.value);
                    self.merge_variable("server.port", value, variable);
                }
                "RUST_LOG" => {
                    let value = Value::from(variable.value.clone());
                    self.merge_variable("telemetry.log_filter", value, variable);
                }
                _ => {}
            }
        }
    }

    /// `AGENTAREA_SECTION__KEY`.
    fn add_prefixed(&mut self, variables: &[Variable], schema: &RootSchema) {
        for variable in variables {
            let Some(rest) = variable.name.strip_prefix(PREFIX) else { continue };
            if RESERVED.contains(&variable.name.as_str()) || is_service_link(variable) {
                continue;
            }
            let key = rest.to_lowercase().replace("__", ".");
            if key.contains('.') {
                let value = schema.parse_text(&key, &variable.value);
                self.merge_variable(&key, value, variable);
                continue;
            }
            self.problems.push(Problem {
                suggestion: closest(&key, schema.keys()).map(|key| variable_name(&key)),
                key: String::new(),
                place: Some(variable.place()),
                message: "unknown variable; section and key are joined by two underscores, as in \
                          AGENTAREA_SERVER__PORT"
                    .to_owned(),
            });
        }
    }
}

/// The name of an environment. It names a file too, which must not be one outside the folder.
fn environment_name(variable: &Variable) -> Result<String, Problem> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if variable.value.chars().all(plain) {
        return Ok(variable.value.clone());
    }
    Err(Problem {
        key: String::new(),
        place: Some(variable.place()),
        message: "names no environment; expected one word of letters, digits, - and _, such as \
                  production"
            .to_owned(),
        suggestion: None,
    })
}

/// Kubernetes sets variables such as `AGENTAREA_API_SERVICE_HOST` in every pod for each service of
/// the namespace; they are no configuration.
fn is_service_link(variable: &Variable) -> bool {
    let name = &variable.name;
    !name.contains("__")
        && (name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_TCP")
            || name.contains("_UDP")
            || variable.value.starts_with("tcp://")
            || variable.value.starts_with("udp://"))
}

pub(super) fn file_problem(path: &Path, message: String) -> Problem {
    line_problem(path, None, message)
}

pub(super) fn line_problem(path: &Path, line: Option<usize>, message: String) -> Problem {
    let place = Place::File { path: display_path(path), line };
    Problem { key: String::new(), place: Some(place), message, suggestion: None }
}

/// Whether there is a file. What else is in its place was meant to be one.
pub(super) fn is_there(path: &Path) -> Result<bool, Problem> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => {
            let hint = wrong_mount(path).unwrap_or("it is no file");
            Err(file_problem(path, format!("cannot be read: {hint}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => {
                let target = target.display();
                Err(file_problem(path, format!("is a link to {target}, which does not exist")))
            }
            Err(_) => Ok(false),
        },
        Err(error) => Err(file_problem(path, format!("cannot be read: {error}"))),
    }
}

/// Why there is a folder where a file belongs.
pub(super) fn wrong_mount(path: &Path) -> Option<&'static str> {
    path.is_dir().then_some(
        "it is a folder; a container engine makes one where the file that it should mount does not \
         exist",
    )
}

/// The first names in a folder.
fn content(dir: &Path) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.len() {
        0 => "nothing".to_owned(),
        1..=5 => names.join(", "),
        more => format!("{} and {} more", names[..5].join(", "), more - 5),
    }
}

/// The name in `${NAME}`, `${NAME:-default}` and their like.
fn placeholder(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("${")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    (end > 0 && rest.contains('}')).then(|| &rest[..end])
}
