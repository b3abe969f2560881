//! Environment variables, including those in `.env`, and the keys that they set.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    backend::BackendDescriptor,
    keys::variable_name,
    layer::{Layer, Origin},
    problem::{Place, Problem, Unclear},
    schema::RootSchema,
    suggest::closest,
};

/// Prefix of the variables that set any key.
const PREFIX: &str = "AGENTAREA_";
/// Variables without the prefix that set a key or the environment.
const PLAIN: [&str; 3] = ["ENVIRONMENT", "PORT", "RUST_LOG"];
/// Variables with the prefix that do not set a key.
const RESERVED: [&str; 2] = ["AGENTAREA_CONFIG_DIR", "AGENTAREA_KEY_FILE"];

/// One variable of the environment or of `.env`.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
    file: Option<PathBuf>,
}

impl Variable {
    /// The trimmed value; see [`Sources::variable`](super::Sources::variable).
    pub(super) fn new(name: &str, value: &str, file: Option<&Path>) -> Self {
        let file = file.map(Path::to_owned);
        Self { name: name.to_owned(), value: value.trim().to_owned(), file }
    }

    pub(super) fn place(&self) -> Place {
        Place::Variable { name: self.name.clone(), file: self.file.clone() }
    }

    fn layer(&self, key: &str, value: Value) -> Layer {
        let origin = Origin::Variable { name: self.name.clone(), file: self.file.clone() };
        Layer::single(origin, key, value)
    }

    /// The name of an environment. It is also a file name, which must not lead out of the folder.
    pub(super) fn environment_name(&self) -> Result<String, Problem> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if self.value.chars().all(plain) {
            return Ok(self.value.clone());
        }
        let message = "names no environment; expected one word of letters, digits, - and _, such \
                       as production";
        Err(Problem::at(self.place(), message))
    }

    /// The key that the name spells, if it spells one.
    fn prefixed_key(&self) -> Option<String> {
        let rest = self.name.strip_prefix(PREFIX)?;
        let is_key = !RESERVED.contains(&self.name.as_str()) && !self.is_service_link();
        is_key.then(|| rest.to_lowercase().replace("__", "."))
    }

    /// Kubernetes sets variables such as `AGENTAREA_API_SERVICE_HOST` in every pod for each service
    /// of the namespace; they are not configuration.
    fn is_service_link(&self) -> bool {
        let name = &self.name;
        !name.contains("__")
            && (name.ends_with("_SERVICE_HOST")
                || name.contains("_SERVICE_PORT")
                || name.contains("_TCP")
                || name.contains("_UDP")
                || self.value.starts_with("tcp://")
                || self.value.starts_with("udp://"))
    }
}

/// Reads variables, all of one place at once.
pub(super) struct VariableReader<'a> {
    pub(super) schema: &'a RootSchema,
    pub(super) backends: &'a [BackendDescriptor],
    pub(super) layers: Vec<Layer>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl VariableReader<'_> {
    /// Adds the layers of `variables`: a variable that spells a key wins over a well-known one.
    pub(super) fn read(&mut self, variables: &[Variable], unclear: &mut Unclear) {
        let mut usable = Vec::new();
        for variable in variables {
            if self.is_filled_in(variable) {
                usable.push(variable);
            } else {
                unclear.extend(self.unclear_keys(&variable.name));
            }
        }
        for variable in &usable {
            if !variable.value.is_empty() {
                self.add_well_known(variable, unclear);
            }
        }
        for variable in &usable {
            self.add_prefixed(variable, unclear);
        }
    }

    /// The keys that the variable `name` may set.
    pub(super) fn unclear_keys(&self, name: &str) -> Vec<String> {
        let mut keys: Vec<String> =
            Variable::new(name, "", None).prefixed_key().into_iter().collect();
        keys.extend(plain_key(name).map(str::to_owned));
        for backend in self.backends {
            for known in backend.variables.iter().filter(|known| known.name == name) {
                keys.push(format!("{}.{}.{}", backend.family, backend.name, known.key));
                keys.extend(known.selects.then(|| format!("{}.backend", backend.family)));
            }
        }
        keys
    }

    /// False for a placeholder that a shell or container engine should have expanded.
    fn is_filled_in(&mut self, variable: &Variable) -> bool {
        let name = variable.name.as_str();
        let is_of_backend = self.backends.iter().flat_map(|b| b.variables).any(|v| v.name == name);
        if !(name.starts_with(PREFIX) || PLAIN.contains(&name) || is_of_backend) {
            return true;
        }
        if variable.value.is_empty() && is_of_backend {
            let warning = format!("{} is empty, so it counts as not set", variable.place());
            self.warnings.push(warning);
        }
        let Some(left) = placeholder(&variable.value) else { return true };
        let message = format!(
            "contains ${{{left}}} literally; the shell or container engine has not put the value \
             of {left} in its place"
        );
        self.problems.push(Problem::at(variable.place(), message));
        false
    }

    /// `REDIS_URL` and its like: each sets an address and selects the backend.
    fn add_well_known(&mut self, variable: &Variable, unclear: &mut Unclear) {
        let mut examples = Vec::new();
        let mut taken = false;
        for backend in self.backends {
            for known in backend.variables.iter().filter(|known| known.name == variable.name) {
                examples.push(backend.example);
                let Some(value) = (known.read)(&variable.value) else { continue };
                taken = true;
                let key = format!("{}.{}.{}", backend.family, backend.name, known.key);
                self.layers.push(variable.layer(&key, Value::from(value)));
                if known.selects {
                    let key = format!("{}.backend", backend.family);
                    self.layers.push(variable.layer(&key, Value::from(backend.name)));
                }
            }
        }
        if !examples.is_empty() && !taken {
            examples.dedup();
            let message = format!("cannot be used; expected {}", examples.join(" or "));
            self.problems.push(Problem::at(variable.place(), message));
            unclear.extend(self.unclear_keys(&variable.name));
        }
        if let Some(key) = plain_key(&variable.name) {
            self.layers.push(variable.layer(key, self.schema.parse_text(key, &variable.value)));
        }
    }

    /// `AGENTAREA_SECTION__KEY`.
    fn add_prefixed(&mut self, variable: &Variable, unclear: &mut Unclear) {
        let Some(key) = variable.prefixed_key() else { return };
        if key.contains('.') {
            let value = self.schema.parse_text(&key, &variable.value);
            self.layers.push(variable.layer(&key, value));
            return;
        }
        let meant = closest(&key, &self.schema.keys_near(&key));
        let message = "unknown variable; section and key are joined by two underscores, as in \
                       AGENTAREA_SERVER__PORT";
        let mut problem = Problem::at(variable.place(), message);
        problem.suggestion = meant.as_deref().map(variable_name);
        self.problems.push(problem);
        unclear.extend(meant);
    }
}

/// The key that a well-known variable sets.
fn plain_key(name: &str) -> Option<&'static str> {
    match name {
        "PORT" => Some("server.port"),
        "RUST_LOG" => Some("telemetry.log_filter"),
        _ => None,
    }
}

/// The name in `${NAME}`, `${NAME:-default}` and their like.
fn placeholder(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("${")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    (end > 0 && rest.contains('}')).then(|| &rest[..end])
}
