//! Operator actions on this instance: reconnect, circuit breaker, reload.

use poem_openapi::{Enum, Object, OpenApi, param::Path, payload::Json};

use super::{
    State,
    connections::{ConnectionSummary, Tag},
    error::ApiError,
    operation::Operation,
};
use crate::{connection::Force, manager::ReloadError};

/// The state that an operator requests for a circuit breaker.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename_all = "snake_case")]
enum CircuitBreakerState {
    /// Refuse every call.
    ForcedOpen,
    /// Pass every call.
    ForcedClosed,
    /// Decide by results, from closed.
    Automatic,
}

impl From<CircuitBreakerState> for Force {
    fn from(state: CircuitBreakerState) -> Self {
        match state {
            CircuitBreakerState::ForcedOpen => Self::Open,
            CircuitBreakerState::ForcedClosed => Self::Closed,
            CircuitBreakerState::Automatic => Self::Automatic,
        }
    }
}

/// A new state for a circuit breaker.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct CircuitBreakerChange {
    /// A forced state survives a reload and lasts until the process ends.
    state: CircuitBreakerState,
}

/// A connection of the instance that answered.
#[derive(Debug, Object)]
struct OperatedConnection {
    /// The instance on which it took effect. Others are unchanged.
    instance: String,
    /// The connection after the operation.
    connection: ConnectionSummary,
}

/// The result of a reload.
#[derive(Debug, Object)]
struct ReloadResult {
    /// The instance that reloaded its configuration. Others are unchanged.
    instance: String,
    /// The changed keys that are now in effect.
    applied: Vec<String>,
    /// The keys that differ from those at start and take effect after a restart.
    needs_restart: Vec<String>,
    /// The rebuilt connections.
    rebuilt: Vec<String>,
}

pub(super) struct Api(pub(super) State);

pub(super) const OPERATIONS: &[Operation] = &[
    Operation::operate("reconnectConnection", &[404, 503, 504])
        .with(|features| features.operator_api),
    Operation::operate("setCircuitBreaker", &[404, 415, 422])
        .with(|features| features.operator_api),
    Operation::operate("reloadConfiguration", &[422, 503, 504])
        .with(|features| features.operator_api),
];

#[OpenApi(tag = "Tag::Connections")]
impl Api {
    /// Rebuild a connection
    ///
    /// Builds and probes a new backend while the old one serves, then replaces it. When the new one
    /// cannot be made, the old one stays and the answer says why.
    #[oai(
        path = "/v1/connections/:name/reconnect",
        method = "post",
        operation_id = "reconnectConnection"
    )]
    async fn reconnect(
        &self,
        /// `event_broker`, `execution_service` or `database`.
        name: Path<String>,
    ) -> Result<Json<OperatedConnection>, ApiError> {
        let made = self.0.manager.reconnect(&name.0).await;
        made.map_err(|error| ApiError::for_operators(&name.0, error))?;
        tracing::info!(connection = name.0, "rebuilt by an operator");
        self.operated(&name.0)
    }

    /// Force a circuit breaker open or closed, or release it
    ///
    /// On the answering instance only.
    #[oai(
        path = "/v1/connections/:name/circuit-breaker",
        method = "put",
        operation_id = "setCircuitBreaker"
    )]
    async fn set_circuit_breaker(
        &self,
        /// `event_broker`, `execution_service` or `database`.
        name: Path<String>,
        change: Json<CircuitBreakerChange>,
    ) -> Result<Json<OperatedConnection>, ApiError> {
        self.0.manager.force_circuit(&name.0, change.0.state.into())?;
        self.operated(&name.0)
    }

    /// Reload the configuration
    ///
    /// Files and secrets are read again with the environment of the start. Everything is checked,
    /// connections whose settings changed are rebuilt and probed, and only then all of it takes
    /// effect; on any failure nothing changes and the answer names the reason.
    #[oai(path = "/v1/config/reload", method = "post", operation_id = "reloadConfiguration")]
    async fn reload(&self) -> Result<Json<ReloadResult>, ApiError> {
        let reloaded = self.0.reloader.reload().await.map_err(|error| match error {
            ReloadError::Config(problems) => ApiError::invalid_configuration(&problems),
            ReloadError::Connection { name, keys, error } => ApiError::for_operators(
                &format!("{name}, with its new {},", keys.join(", ")),
                error,
            ),
        })?;
        tracing::info!(applied = ?reloaded.applied, rebuilt = ?reloaded.rebuilt, "reloaded");
        Ok(Json(ReloadResult {
            instance: self.0.instance.to_string(),
            applied: reloaded.applied,
            needs_restart: reloaded.needs_restart,
            rebuilt: reloaded.rebuilt.into_iter().map(str::to_owned).collect(),
        }))
    }

    fn operated(&self, name: &str) -> Result<Json<OperatedConnection>, ApiError> {
        let (report, _timeline) = self.0.manager.report(name)?;
        Ok(Json(OperatedConnection {
            instance: self.0.instance.to_string(),
            connection: ConnectionSummary::new(&report),
        }))
    }
}
