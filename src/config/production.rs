//! The defaults and requirements of `ENVIRONMENT=production`.

use super::{
    AuthMode, Config,
    backend::BackendDescriptor,
    layer::{Layer, Origin},
    problem::{Place, Problems},
    toml_text,
    tree::Tree,
};

/// The value of `ENVIRONMENT` that selects production.
pub(super) const PRODUCTION: &str = "production";

/// The shipped `production.toml` as a layer of its own. Without it, a missing folder or a shorter
/// file would silently weaken production.
pub(super) fn compiled_in() -> Layer {
    let parsed = toml_text::parse(include_str!("../../config/production.toml"));
    Layer { origin: Origin::ProductionDefault, root: parsed.root.into() }
}

/// Production requires backends that replicas can share, and authentication.
pub(super) fn validate(
    config: &Config,
    tree: &Tree,
    backends: &[BackendDescriptor],
    problems: &mut Problems<'_>,
) {
    if !config.is_production() {
        return;
    }
    for (family, connection) in config.connections() {
        let of_family = || backends.iter().filter(|backend| backend.family == family);
        let chosen = of_family().find(|backend| backend.name == connection.backend);
        if let Some(shared) = chosen.filter(|backend| backend.shared) {
            validate_address(shared, tree, problems);
            continue;
        }
        if connection.allow_embedded_in_production {
            continue;
        }
        let examples: Vec<&str> = of_family().filter(|b| b.shared).map(|b| b.example).collect();
        problems.add(
            &format!("{family}.backend"),
            format!(
                "{:?} serves one process only, which production does not allow; set for example {}, \
                 or {family}.allow_embedded_in_production = true",
                connection.backend,
                examples.join(" or ")
            ),
        );
    }
    if config.auth.mode == AuthMode::None && !config.auth.allow_none_in_production {
        problems.add(
            "auth.mode",
            "production does not allow \"none\"; set auth.mode = \"api_key\" and add the line that \
             `agentarea-api key new` prints, or set auth.allow_none_in_production = true",
        );
    }
}

/// The compiled default addresses are those of a developer's machine.
fn validate_address(backend: &BackendDescriptor, tree: &Tree, problems: &mut Problems<'_>) {
    let Some(variable) = backend.variables.iter().find(|variable| variable.selects) else { return };
    let key = format!("{}.{}.{}", backend.family, backend.name, variable.key);
    if tree.place(&key).as_ref().is_none_or(Place::is_compiled) {
        problems.add(&key, format!("is not set; set for example {}", backend.example));
    }
}
