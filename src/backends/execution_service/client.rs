//! The execution service as its callers see it: the methods of its trait, each through the guard.

use super::{Description, ExecutionService, Page, PageToken, Started};
use crate::{
    connection::guarded,
    model::{
        executions::{ListedEnd, StartRequest},
        json::Json,
        time::Timestamp,
    },
};

guarded! {
    dyn ExecutionService;

    ExecutionService {
        // The stored request id makes repetitions harmless.
        idempotent start(request: &StartRequest) -> Started;
        idempotent describe(id: &str) -> Description;
        idempotent ended_since(
            since: Timestamp, page: Option<&PageToken>
        ) -> Page<ListedEnd>;
        idempotent running(page: Option<&PageToken>) -> Page<String>;
        idempotent outcomes(ended: &[ListedEnd]) -> Vec<Description>;
        once signal(id: &str, name: &str, input: &Json) -> ();
        // A worker answers, so its silence says nothing of the service.
        passed_on query(id: &str, name: &str, input: &Json) -> Json;
        idempotent cancel(id: &str) -> ();
        idempotent terminate(id: &str, reason: &str) -> ();
    }
}
