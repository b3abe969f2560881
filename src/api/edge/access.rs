//! Access control: pages of other sites, open routes, and the scopes of keys.

use std::sync::Arc;

use poem::{Request, error::MethodNotAllowedError, http::header};

use super::{
    super::{
        auth::{Keys, Principal},
        foreign::Gate,
        operation::Route,
    },
    problems::Refusal,
};
use crate::config::{Config, Scope};

#[derive(Clone)]
pub(super) struct Access {
    gate: Gate,
    keys: Keys,
    config: Arc<Config>,
}

impl Access {
    pub(super) fn new(config: &Arc<Config>) -> Self {
        Self { gate: Gate::new(config), keys: Keys::new(&config.auth), config: Arc::clone(config) }
    }

    /// Admits a request if no foreign page sends it, and its route is open or its key has the
    /// scope. Stores the [`Caller`] for the handlers.
    pub(super) fn admit(&self, request: &mut Request, route: &Route) -> Result<(), poem::Error> {
        self.gate.admit(request, route.is_probe()).map_err(Refusal::from)?;
        let operation = route
            .operation(request.method())
            .ok_or_else(|| poem::Error::from(MethodNotAllowedError))?;
        let principal = self.keys.identify(request.header(header::AUTHORIZATION));
        if let Some(scope) = operation.scope_under(&self.config.auth) {
            let principal = principal.as_ref().ok_or(Refusal::Unauthenticated)?;
            if !principal.may(scope) {
                return Err(Refusal::Forbidden(scope).into());
            }
        }
        request.set_data(Caller(principal));
        Ok(())
    }
}

/// The sender of the request, if known; open routes receive it too.
#[derive(Clone, Debug)]
pub(in super::super) struct Caller(pub(in super::super) Option<Principal>);

impl Caller {
    /// The name that idempotency keys belong to.
    pub(in super::super) fn name(&self) -> &str {
        self.0.as_ref().map_or("anonymous", |principal| &*principal.name)
    }

    pub(in super::super) fn may_read(&self) -> bool {
        self.0.as_ref().is_some_and(|principal| principal.may(Scope::Read))
    }
}
