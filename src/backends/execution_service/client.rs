//! The execution service as its callers see it: the methods of its trait, each through the guard.

use super::{Description, ExecutionService, Started};
use crate::{
    connection::guarded,
    model::{executions::StartRequest, json::Json, time::Timestamp},
};

guarded! {
    dyn ExecutionService;

    ExecutionService {
        // The stored request id makes repetitions harmless.
        idempotent start(request: &StartRequest) -> Started;
        idempotent describe(id: &str) -> Description;
        idempotent list(since: Timestamp, limit: usize) -> Vec<Description>;
        once signal(id: &str, name: &str, input: &Json) -> ();
        // A worker answers, so its silence says nothing of the service.
        passed_on query(id: &str, name: &str, input: &Json) -> Json;
        idempotent cancel(id: &str) -> ();
        idempotent terminate(id: &str, reason: &str) -> ();
    }
}
