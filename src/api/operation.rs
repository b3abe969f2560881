//! The operations of the API and their routes. A route is declared in the file of its group, such as
//! `events.rs`: path and method beside the handler, scope and problems in its `OPERATIONS`.
//!
//! Authentication, `Allow`, metric labels and the specification's error responses all use this
//! table.

use poem::http::Method;
use poem_openapi::registry::MetaApi;

use crate::config::{Auth, Features, Scope};

/// The properties of a handler that its path and types do not express.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    id: &'static str,
    /// The scope that a key needs; `None` for an open operation.
    pub(super) scope: Option<Scope>,
    /// The statuses of problems it can answer with, besides those of every route.
    pub(super) problems: &'static [u16],
    /// True when load balancers and kubelets poll it constantly. They call the service by any name,
    /// and the answer costs less than the fields of a log line, so its handler logs nothing except
    /// at level `debug`.
    pub(super) is_probe: bool,
    is_enabled: fn(&Features) -> bool,
    is_opened: fn(&Auth) -> bool,
}

impl Operation {
    const fn new(id: &'static str, scope: Option<Scope>, problems: &'static [u16]) -> Self {
        Self { id, scope, problems, is_probe: false, is_enabled: |_| true, is_opened: |_| false }
    }

    /// An open operation that answers health probes.
    pub(super) const fn probe(id: &'static str) -> Self {
        Self { is_probe: true, ..Self::new(id, None, &[]) }
    }

    /// An operation that changes nothing.
    pub(super) const fn read(id: &'static str, problems: &'static [u16]) -> Self {
        Self::new(id, Some(Scope::Read), problems)
    }

    /// An operation that submits or steers work.
    pub(super) const fn write(id: &'static str, problems: &'static [u16]) -> Self {
        Self::new(id, Some(Scope::Write), problems)
    }

    /// An operation on the service itself.
    pub(super) const fn operate(id: &'static str, problems: &'static [u16]) -> Self {
        Self::new(id, Some(Scope::Operate), problems)
    }

    /// Makes the operation depend on this feature.
    pub(super) const fn with(self, is_enabled: fn(&Features) -> bool) -> Self {
        Self { is_enabled, ..self }
    }

    /// Makes the operation need no key where this setting says so.
    pub(super) const fn opened_by(self, is_opened: fn(&Auth) -> bool) -> Self {
        Self { is_opened, ..self }
    }

    /// The scope that a key needs under these settings.
    pub(super) fn scope_under(&self, auth: &Auth) -> Option<Scope> {
        self.scope.filter(|_| !(self.is_opened)(auth))
    }
}

/// A page for people or tools, which is not part of the specification.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) path: &'static str,
    pub(super) is_enabled: fn(&Features) -> bool,
}

/// A path and its operations.
#[derive(Debug)]
pub(super) struct Route {
    /// With parameters in braces.
    pub(super) path: String,
    operations: Vec<(Method, Operation)>,
}

impl Route {
    fn of_page(page: &Page) -> Self {
        let operation = Operation::new("", None, &[]).with(page.is_enabled);
        Self { path: page.path.to_owned(), operations: vec![(Method::GET, operation)] }
    }

    /// The operation of a method; `HEAD` uses that of `GET`.
    pub(super) fn operation(&self, method: &Method) -> Option<&Operation> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.operations.iter().find(|(other, _)| other == method).map(|(_, operation)| operation)
    }

    /// The methods that have an operation, sorted.
    pub(super) fn methods(&self) -> Vec<&str> {
        let mut methods: Vec<&str> = self.operations.iter().map(|(it, _)| it.as_str()).collect();
        methods.sort_unstable();
        methods
    }

    pub(super) fn is_enabled(&self, features: &Features) -> bool {
        self.operations.iter().any(|(_, operation)| (operation.is_enabled)(features))
    }

    pub(super) fn is_probe(&self) -> bool {
        self.operations.iter().any(|(_, operation)| operation.is_probe)
    }
}

/// All routes.
#[derive(Debug)]
pub(super) struct Routes(Vec<Route>);

impl Routes {
    /// The routes of `apis`, whose operations are all in `operations`, and those of `pages`.
    ///
    /// # Panics
    /// When an operation has no entry, because a forgotten entry must not bypass authentication.
    pub(super) fn new(apis: Vec<MetaApi>, operations: &[Operation], pages: &[Page]) -> Self {
        let mut routes: Vec<Route> = pages.iter().map(Route::of_page).collect();
        for path in apis.into_iter().flat_map(|api| api.paths) {
            let known = path.operations.iter().map(|described| {
                let id = described.operation_id.unwrap_or_default();
                let operation = operations.iter().find(|operation| operation.id == id);
                let operation = operation.unwrap_or_else(|| panic!("{id:?} has no entry"));
                (described.method.clone(), *operation)
            });
            let known: Vec<(Method, Operation)> = known.collect();
            routes.push(Route { path: path.path, operations: known });
        }
        Self(routes)
    }

    /// The route that a path belongs to.
    pub(super) fn find(&self, path: &str) -> Option<&Route> {
        self.0.iter().find(|route| matches(&route.path, path))
    }

    /// The route with this path, as the specification writes it.
    pub(super) fn named(&self, path: &str) -> Option<&Route> {
        self.0.iter().find(|route| route.path == path)
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut pattern, mut path) = (pattern.split('/'), path.split('/'));
    loop {
        match (pattern.next(), path.next()) {
            (None, None) => return true,
            (Some(wanted), Some(part))
                if wanted == part || (wanted.starts_with('{') && !part.is_empty()) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ROUTES;

    #[test]
    fn a_path_finds_its_route() {
        let path = |path: &str| ROUTES.find(path).map(|route| &*route.path);
        assert_eq!(path("/v1/executions/abc"), Some("/v1/executions/{id}"));
        assert_eq!(path("/v1/events/stream"), Some("/v1/events/stream"));
        assert_eq!(path("/v1/executions/a/signals/b"), Some("/v1/executions/{id}/signals/{name}"));
        assert_eq!(path("/docs"), Some("/docs"));
        assert_eq!(path("/v1/executions/"), None);
        assert_eq!(path("/v2"), None);
    }

    #[test]
    fn a_route_knows_its_methods_and_their_scopes() {
        let route = ROUTES.find("/v1/executions").unwrap();
        assert_eq!(route.methods(), ["GET", "POST"]);
        let scope = |method| route.operation(&method).and_then(|operation| operation.scope);
        assert_eq!(scope(Method::HEAD), Some(Scope::Read));
        assert_eq!(scope(Method::POST), Some(Scope::Write));
        assert!(route.operation(&Method::PUT).is_none());
    }
}
