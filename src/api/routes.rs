//! Every route once: its methods, the scope each needs, and the problems each can answer with.
//!
//! Authentication, `Allow`, metric labels and the specification's error responses all come from here.

use crate::config::{Features, Scope};

/// One method of a route.
#[derive(Debug)]
pub(super) struct Method {
    /// Its name.
    pub(super) name: &'static str,
    /// What a key needs; none means open.
    pub(super) scope: Option<Scope>,
    /// Statuses of problems it can answer with, besides those of every route.
    pub(super) problems: &'static [u16],
}

/// A route.
#[derive(Debug)]
pub(super) struct Route {
    /// Its path, with parameters in braces.
    pub(super) path: &'static str,
    /// Its methods.
    pub(super) methods: &'static [Method],
    /// Whether it is switched on.
    pub(super) enabled: fn(&Features) -> bool,
}

impl Route {
    /// Whether balancers and kubelets ask for it all day. They call the service by any name, and the
    /// answer costs less than making the fields of a log line, so that its handlers log nothing but
    /// at level `debug`.
    pub(super) fn is_probe(&self) -> bool {
        matches!(self.path, "/health" | "/livez" | "/readyz")
    }
}

const fn open(name: &'static str, problems: &'static [u16]) -> Method {
    Method { name, scope: None, problems }
}

const fn read(name: &'static str, problems: &'static [u16]) -> Method {
    Method { name, scope: Some(Scope::Read), problems }
}

const fn write(name: &'static str, problems: &'static [u16]) -> Method {
    Method { name, scope: Some(Scope::Write), problems }
}

const fn operate(name: &'static str, problems: &'static [u16]) -> Method {
    Method { name, scope: Some(Scope::Operate), problems }
}

const fn always(_: &Features) -> bool {
    true
}

/// All routes.
pub(super) static ROUTES: [Route; 24] = [
    Route { path: "/", methods: &[open("GET", &[])], enabled: |f| f.status_page },
    Route { path: "/docs", methods: &[open("GET", &[])], enabled: |f| f.docs },
    Route { path: "/openapi.json", methods: &[open("GET", &[])], enabled: |f| f.docs },
    Route { path: "/openapi.yaml", methods: &[open("GET", &[])], enabled: |f| f.docs },
    Route { path: "/health", methods: &[open("GET", &[])], enabled: always },
    Route { path: "/livez", methods: &[open("GET", &[])], enabled: always },
    Route { path: "/readyz", methods: &[open("GET", &[])], enabled: always },
    Route { path: "/metrics", methods: &[read("GET", &[])], enabled: |f| f.metrics },
    Route {
        path: "/v1/events",
        methods: &[write("POST", &[400, 404, 409, 413, 415, 422, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/events/stream",
        methods: &[read("GET", &[400, 503, 504])],
        enabled: |f| f.event_stream,
    },
    Route {
        path: "/v1/executions",
        methods: &[
            read("GET", &[400, 503, 504]),
            write("POST", &[400, 409, 413, 415, 422, 501, 503, 504]),
        ],
        enabled: always,
    },
    Route {
        path: "/v1/executions/{id}",
        methods: &[read("GET", &[400, 404, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/executions/{id}/cancel",
        methods: &[write("POST", &[404, 409, 501, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/executions/{id}/terminate",
        methods: &[write("POST", &[400, 404, 409, 413, 415, 422, 501, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/executions/{id}/signals/{name}",
        methods: &[write("POST", &[400, 404, 409, 413, 415, 422, 501, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/executions/{id}/queries/{name}",
        methods: &[write("POST", &[400, 404, 413, 415, 422, 501, 503, 504])],
        enabled: always,
    },
    Route {
        path: "/v1/dead-letters",
        methods: &[read("GET", &[400, 503, 504])],
        enabled: |f| f.operator_api,
    },
    Route {
        path: "/v1/dead-letters/{id}",
        methods: &[operate("DELETE", &[404, 503, 504])],
        enabled: |f| f.operator_api,
    },
    Route {
        path: "/v1/dead-letters/{id}/redrive",
        methods: &[operate("POST", &[404, 503, 504])],
        enabled: |f| f.operator_api,
    },
    Route { path: "/v1/connections", methods: &[read("GET", &[])], enabled: |f| f.operator_api },
    Route {
        path: "/v1/connections/{name}",
        methods: &[read("GET", &[404])],
        enabled: |f| f.operator_api,
    },
    Route {
        path: "/v1/connections/{name}/reconnect",
        methods: &[operate("POST", &[404, 503, 504])],
        enabled: |f| f.operator_api,
    },
    Route {
        path: "/v1/connections/{name}/circuit-breaker",
        methods: &[operate("PUT", &[400, 404, 413, 415, 422])],
        enabled: |f| f.operator_api,
    },
    Route {
        path: "/v1/config/reload",
        methods: &[operate("POST", &[422, 503, 504])],
        enabled: |f| f.operator_api,
    },
];

/// The route that a path belongs to.
pub(super) fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|route| matches(route.path, path))
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

    #[test]
    fn a_path_finds_its_route() {
        let path = |path: &str| find(path).map(|route| route.path);
        assert_eq!(path("/v1/executions/abc"), Some("/v1/executions/{id}"));
        assert_eq!(path("/v1/events/stream"), Some("/v1/events/stream"));
        assert_eq!(path("/v1/executions/a/signals/b"), Some("/v1/executions/{id}/signals/{name}"));
        assert_eq!(path("/v1/executions/"), None);
        assert_eq!(path("/v2"), None);
    }
}
