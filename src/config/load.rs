//! Merges the layers into one checked [`Config`], and reports all problems at once.
//!
//! One problem must not hide another. An unusable value is reported and removed from its layer, and
//! later checks run on the values that remain. Only a check that depends on a removed value is
//! skipped.

use std::collections::BTreeMap;

use figment::value::Value;

use super::{
    Config, ConfigError, Loaded, Sources,
    backend::{self, BackendDescriptor, Section, Table},
    keys::overlap,
    layer::Layer,
    problem::{Problem, Problems, Unclear},
    production,
    schema::RootSchema,
    secrets, show,
    sources::{self, Layers},
    tree::{Tree, entries_mut, to_json},
    validate::validate,
};

/// Loads and checks the configuration. A reload keeps the environment in which the program
/// `started`.
pub(super) fn load(
    sources: &Sources,
    started: Option<&str>,
    backends: &[BackendDescriptor],
) -> Result<Loaded, ConfigError> {
    let schema = RootSchema::new(backends);
    let Layers { mut list, environment, named_environment, mut problems, mut unclear, warnings } =
        sources::layers(sources, started, &schema, backends);
    for layer in list.iter_mut().filter(|layer| !layer.origin.is_compiled()) {
        problems.extend(validate(layer, &schema, &mut unclear));
    }

    let reader = Reader { schema: &schema, sources, environment: &environment, backends };
    let (effective, found) = reader.read(&list, &mut unclear);
    problems.extend(found);
    problems.extend(reader.problems(&effective, &effective.config, &unclear));
    problems.extend(reader.problems_of_production(&effective, &unclear));
    let overridden = reader.problems_of_overridden(&list, &effective, &unclear);
    problems.extend(overridden);
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }

    let Candidate { tree, config } = effective;
    let settings = show::settings(&tree, &schema);
    let sources = sources.clone();
    Ok(Loaded { config, tree, warnings, sources, named_environment, settings })
}

/// Several layers, merged and read.
struct Candidate {
    tree: Tree,
    config: Config,
}

struct Reader<'a> {
    schema: &'a RootSchema,
    sources: &'a Sources,
    environment: &'a str,
    backends: &'a [BackendDescriptor],
}

impl Reader<'_> {
    /// Merges layers that match the schema.
    fn read<'l>(
        &self,
        layers: impl IntoIterator<Item = &'l Layer>,
        unclear: &mut Unclear,
    ) -> (Candidate, Vec<Problem>) {
        let mut tree = Tree::merge(layers);
        let working_dir = &self.sources.working_dir;
        let mut problems = secrets::resolve(&mut tree, self.schema.root(), working_dir, unclear);
        let mut root = tree.root().clone();
        let tables = self.take_tables(&mut root);
        let mut unreadable = Vec::new();
        let mut config = Config::read(&root, &mut unreadable);
        self.environment.clone_into(&mut config.environment);
        for (family, connection) in config.connections_mut() {
            connection.backends = tables.get(family).cloned().unwrap_or_default();
        }
        for section in unreadable {
            // Unreachable after the check against the schema.
            let place = tree.place(section);
            let (key, message) = (section.to_owned(), backend::UNREADABLE.to_owned());
            problems.push(Problem { key, place, message, suggestion: None });
            unclear.add(section);
        }
        (Candidate { tree, config }, problems)
    }

    /// Removes the backends' tables, which the backends read themselves.
    fn take_tables(&self, root: &mut Value) -> BTreeMap<&str, BTreeMap<String, Section>> {
        let mut tables: BTreeMap<&str, BTreeMap<String, Section>> = BTreeMap::new();
        for BackendDescriptor { family, name, .. } in self.backends {
            let connection = entries_mut(root).and_then(|root| root.get_mut(*family));
            let table = connection.and_then(entries_mut).and_then(|entries| entries.remove(*name));
            if let Some(table) = table {
                let table = Section(to_json(&table));
                tables.entry(family).or_default().insert((*name).to_owned(), table);
            }
        }
        tables
    }

    /// Checks the sections, and the tables of the backends that are selected here or in the
    /// `effective` configuration.
    fn problems(
        &self,
        candidate: &Candidate,
        effective: &Config,
        unclear: &Unclear,
    ) -> Vec<Problem> {
        let mut problems = Problems::new(&candidate.tree, unclear);
        candidate.config.validate(&mut problems);
        for (family, connection) in candidate.config.connections() {
            let chosen = effective.connections().into_iter().find(|(name, _)| *name == family);
            let chosen = chosen.map(|(_, connection)| connection.backend.as_str());
            let is_chosen = |name: &str| name == connection.backend || Some(name) == chosen;
            for backend in self.backends.iter().filter(|b| b.family == family && is_chosen(b.name))
            {
                let table = connection.backends.get(backend.name).cloned().unwrap_or_default();
                validate_table(backend, &table.0, &mut problems);
            }
        }
        problems.list
    }

    /// Checks the requirements of production and the limits of this build.
    fn problems_of_production(&self, effective: &Candidate, unclear: &Unclear) -> Vec<Problem> {
        let Candidate { config, tree } = effective;
        let mut problems = Problems::new(tree, unclear);
        for (family, connection) in config.connections() {
            let chosen =
                |b: &&BackendDescriptor| b.family == family && b.name == connection.backend;
            let table = self.backends.iter().find(chosen).map(|backend| &backend.table);
            if let Some(Table::CompiledOut { feature }) = table {
                problems.add(
                    &format!("{family}.backend"),
                    format!(
                        "{:?} is not part of this build; build with `--features {feature}`",
                        connection.backend
                    ),
                );
            }
        }
        production::validate(config, tree, self.backends, &mut problems);
        problems.list
    }

    /// Finds problems of values that a later layer overrides. Such a value is wrong by itself only
    /// if it is wrong both in its own layer and on top of all layers, because a value that
    /// conflicts with it may be overridden, too.
    fn problems_of_overridden(
        &self,
        layers: &[Layer],
        effective: &Candidate,
        unclear: &Unclear,
    ) -> Vec<Problem> {
        let mut found = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let (until, later) = layers.split_at(index + 1);
            let mut replaced = layer.leaves();
            replaced.retain(|key| later.iter().any(|layer| layer.find(key).is_some()));
            if layer.origin.is_compiled() || replaced.is_empty() {
                continue;
            }
            let mut ignored = Unclear::default();
            let (there, _) = self.read(until, &mut ignored);
            let (on_top, _) = self.read(layers.iter().chain([layer]), &mut ignored);
            let on_top = self.problems(&on_top, &effective.config, unclear);
            let there = self.problems(&there, &effective.config, unclear);
            let wrong = there.into_iter().filter(|problem| {
                replaced.iter().any(|key| overlap(key, &problem.key))
                    && on_top.iter().any(|other| other.says_the_same_as(problem))
            });
            found.extend(wrong.map(|problem| {
                let place = Some(layer.origin.place(&problem.key));
                Problem { place, ..problem }
            }));
        }
        found
    }
}

/// A backend checks its own table and does not report the keys on which a problem depends. So in a
/// table with an unknown value, a problem counts only if the value also causes it alone.
fn validate_table(
    backend: &BackendDescriptor,
    table: &serde_json::Value,
    problems: &mut Problems<'_>,
) {
    let Table::Known { check, defaults, .. } = &backend.table else { return };
    let path = format!("{}.{}", backend.family, backend.name);
    let is_unclear = problems.is_unclear(&path);
    for (key, message) in check(table) {
        let has_it_alone = || {
            let mut alone = defaults.clone();
            copy(key, table, &mut alone);
            check(&alone).contains(&(key, message.clone()))
        };
        if !is_unclear || has_it_alone() {
            problems.add(format!("{path}.{key}").trim_end_matches('.'), message);
        }
    }
}

/// Copies the value at `key` from one table to another.
fn copy(key: &str, from: &serde_json::Value, to: &mut serde_json::Value) {
    let pointer = format!("/{}", key.replace('.', "/"));
    if let (Some(from), Some(to)) = (from.pointer(&pointer), to.pointer_mut(&pointer)) {
        to.clone_from(from);
    }
}
