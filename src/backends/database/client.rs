//! The database as its callers see it: the methods of its traits, each through the guard.

use std::time::Duration;

use super::{
    Accept, Acceptance, Admission, ClaimedExecutions, ClaimedRun, Counts, Database, DeadLetter,
    DeadLetters, DeliveredEvent, Ended, ExecutionQueue, ExecutionStore, Lane, NewEvent, Outbox,
    Parcel, PendingEvents, RejectedExecution, Release, Roles, Run, RunStore, StatusChange,
    Transfer, Wakeups,
};
use crate::{
    connection::guarded,
    error::Error,
    model::{
        backlog::Count,
        events::Position,
        executions::{
            Ending, Execution, ListFilter, ListedEnd, OpenExecution, Outcome, StartRequest,
        },
        lanes::{Lanes, Slots},
        time::Timestamp,
    },
};

guarded! {
    dyn Database;

    Accept {
        // Idempotent: rows stored by an earlier attempt are recognised and left unchanged.
        idempotent accept(batch: &[&Admission]) -> Vec<Acceptance>;
        idempotent forget_keys(limit: i64) -> usize;
    }

    ExecutionStore {
        idempotent execution(id: &str) -> Option<Execution>;
        idempotent executions(filter: &ListFilter) -> Vec<Execution>;
        idempotent change(changes: &[&StatusChange]) -> Vec<bool>;
        idempotent confirm(ids: &[String]) -> usize;
        idempotent unconfirmed(backend: &str, limit: i64) -> Vec<OpenExecution>;
        idempotent open_among(ids: &[String]) -> Vec<OpenExecution>;
        idempotent remove_ended(older_than: Duration, limit: i64) -> usize;
    }

    ExecutionQueue {
        // A claim whose answer was lost lasts until its lease ends; repeating it would claim more.
        once claim_executions(
            backend: &str, owner: &str, lease: Duration, limit: i64, max_bytes: i64
        ) -> ClaimedExecutions;
        idempotent release_executions(claims: &[Release]) -> ();
        once count_refusal(id: &str, fence: i64, pause: Duration) -> Option<i32>;
        once reject_execution(
            id: &str, fence: i64, outcome: &Outcome, announcement: &NewEvent
        ) -> bool;
        // Not idempotent: the answer tells whether this very call ended the execution.
        once end_accepted(
            id: &str, ending: &Ending, outcome: &Outcome, announcement: &NewEvent
        ) -> Ended;
        idempotent wished_endings(
            backend: &str, limit: i64
        ) -> Vec<(String, Result<Ending, Error>)>;
        idempotent forget_wish(id: &str) -> ();
    }

    RunStore {
        idempotent insert_run(request: &StartRequest) -> bool;
        idempotent run(id: &str) -> Option<Run>;
        idempotent runs(ids: &[String]) -> Vec<Run>;
        idempotent ended_runs(
            since: Timestamp, after: Option<(Timestamp, &str)>, limit: i64
        ) -> Vec<ListedEnd>;
        idempotent running_runs(after: Option<&str>, limit: i64) -> Vec<String>;
        idempotent claim_runs(owner: &str, lease: Duration, limit: i64) -> Vec<ClaimedRun>;
        idempotent renew_runs(
            owner: &str, ids: &[String], lease: Duration
        ) -> Vec<(String, bool)>;
        idempotent note_try(id: &str, fence: i64, tries: u32, pause: Duration) -> bool;
        idempotent finish_run(id: &str, fence: i64, outcome: &Outcome) -> bool;
        idempotent cancel_run(id: &str) -> bool;
        idempotent terminate_run(id: &str, reason: &str) -> bool;
        idempotent release_runs(owner: &str) -> ();
        idempotent release_runs_of_others(instance: &str) -> ();
    }

    Outbox {
        idempotent want_lanes(lanes: Lanes) -> Lanes;
        idempotent claim_lanes(owner: &str, lease: Duration) -> Vec<Lane>;
        idempotent release_lanes(owner: &str) -> ();
        idempotent pending_events(held: &[Lane], limit: i64, max_bytes: i64) -> PendingEvents;
        idempotent mark_delivered(
            owner: &str, held: &[Lane], events: &[(i64, Position)]
        ) -> usize;
        idempotent delivered_events(before: Option<i64>, limit: i64) -> Vec<DeliveredEvent>;
        idempotent newest_places(held: &[Lane]) -> Vec<Position>;
        idempotent delivered_places(
            held: &[Lane], after: i64, limit: i64
        ) -> Vec<(i64, Position)>;
        idempotent send_again(owner: &str, held: &[Lane], events: &[(i64, Position)]) -> usize;
        once note_refusal(owner: &str, lane: Lane, seq: i64, error: &str, most: i32) -> bool;
        idempotent remove_delivered(older_than: Duration, limit: i64) -> usize;
    }

    Counts {
        idempotent count_waiting(most: i64) -> Count;
        idempotent counted() -> Option<Count>;
    }

    DeadLetters {
        idempotent dead_letters(before: Option<i64>, limit: i64) -> Vec<DeadLetter>;
        // Not idempotent: the answers tell whether this very call made the change.
        once redrive(seq: i64) -> bool;
        once discard(seq: i64) -> bool;
        idempotent rejected_executions(after: Option<&str>, limit: i64) -> Vec<RejectedExecution>;
        once redrive_execution(id: &str, redrives: i32, announcement: &NewEvent) -> bool;
        once discard_execution(id: &str) -> bool;
    }

    Roles {
        idempotent take_role(role: &str, owner: &str, lease: Duration) -> bool;
        idempotent give_role_back(role: &str, owner: &str) -> ();
        idempotent forget_processes(silent_for: Duration) -> ();
    }

    Wakeups {
        idempotent wake_others(slots: &Slots) -> ();
    }

    Transfer {
        // Idempotent: rows that are already stored are left unchanged.
        idempotent take_in(parcel: &Parcel) -> ();
    }
}
