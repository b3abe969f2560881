//! Databases: they store accepted work.
//!
//! A [`Database`] is a few small traits of use-case size, each beside its types in a file of its
//! own. Each method is one transaction. Times that processes compare (claims, leases) come from the
//! database's own clock.
//!
//! The statements are written once, in `statements/`, and compiled for each database against its
//! dialect: see `dialect.rs`.

mod accept;
mod client;
mod counts;
mod dead_letters;
mod dialect;
mod errors;
mod executions;
mod migrations;
mod outbox;
#[cfg(feature = "postgres")]
mod postgres;
mod queue;
mod roles;
mod rows;
mod runs;
mod schema;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "postgres")]
mod tls;
mod transfer;
mod wakeups;

#[cfg(test)]
mod contract;
#[cfg(test)]
mod pool_tests;

use std::time::Duration;
#[cfg(feature = "sqlite")]
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    accept::{Accept, Acceptance, Admission, Claim, KeyUse, NewEvent, NewRecord, Work},
    counts::Counts,
    dead_letters::{DeadLetter, DeadLetters, RejectedExecution},
    executions::{ExecutionStore, StatusChange},
    outbox::{DeliveredEvent, Lane, Outbox, PendingEvent, PendingEvents, UnreadableEvent},
    queue::{
        ClaimedExecution, ClaimedExecutions, Ended, ExecutionQueue, Release, UnreadableExecution,
    },
    roles::{Role, Roles},
    runs::{ClaimedRun, Run, RunStore},
    transfer::{Parcel, Transfer, Unfinished},
    wakeups::Wakeups,
};
#[cfg(feature = "sqlite")]
use crate::{
    config::Section,
    connection::{BuildContext, Factory as _},
    error::{Error, ErrorKind},
};
use crate::{
    config::{self, WellKnownVariable},
    connection::{Backend, Registry},
};

#[cfg(not(any(feature = "postgres", feature = "sqlite")))]
compile_error!("agentarea-api needs a database: enable the feature `sqlite` or `postgres`");

/// The name of the family.
pub const FAMILY: &str = "database";

/// Stores accepted work, idempotency keys and embedded runs.
pub trait Database:
    Backend
    + Accept
    + ExecutionStore
    + ExecutionQueue
    + RunStore
    + Outbox
    + Counts
    + DeadLetters
    + Roles
    + Transfer
    + Wakeups
{
    /// True when no other process can use it, so any claim of another process was left by a process
    /// that died.
    fn serves_one_process(&self) -> bool;
}

/// How long connecting and migrating may take; connecting alone is bounded by
/// `pool.connect_timeout`.
const MIGRATION_TIMEOUT: Duration = Duration::from_mins(10);

/// The note of a check for a database that no service has migrated yet.
const NO_TABLES: &str = "the tables do not exist yet; the service creates them when it starts";

/// `DATABASE_URL` selects the backend by its scheme.
const POSTGRES_VARIABLES: [WellKnownVariable; 1] = [WellKnownVariable {
    name: "DATABASE_URL",
    key: "url",
    selects: true,
    read: |url| {
        let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        is_postgres.then(|| url.to_owned())
    },
}];
const SQLITE_VARIABLES: [WellKnownVariable; 1] = [WellKnownVariable {
    name: "DATABASE_URL",
    key: "path",
    selects: true,
    read: |url| {
        let path = url.strip_prefix("sqlite:")?;
        Some(path.strip_prefix("//").unwrap_or(path).to_owned())
    },
}];

/// The commits of one kind of work that are worth having under way at the same time. Writers of
/// `SQLite` take turns. Others overlap their round trips: with two, 128 clients were answered a
/// third more often at a round trip of 1 ms and a quarter more often at 20 ms; more made the commits
/// smaller and dearer. At least half of the pool is left to readers and to other work.
#[must_use]
pub fn commits_at_once(config: &config::Connection) -> usize {
    match config.backend.as_str() {
        "sqlite" => 1,
        _ => (config.pool.max_size / 2).clamp(1, 2),
    }
}

/// The default file of the embedded database, if it holds unfinished work. It is easily forgotten
/// when the service uses another database.
#[cfg(feature = "sqlite")]
pub async fn left_behind() -> Option<(PathBuf, Unfinished)> {
    let path = sqlite::default_path();
    let left = sqlite::unfinished_in(&path).await.ok()?;
    (left != Unfinished::default()).then_some((path, left))
}

/// Opens the file of an embedded database. No service may use it at the same time.
///
/// # Errors
/// When the file does not exist, another process uses it, or it is not a database of this program.
#[cfg(feature = "sqlite")]
pub async fn open_file(path: &Path, context: &BuildContext) -> Result<Arc<dyn Database>, Error> {
    if !path.exists() {
        let message = format!("there is no file {}", path.display());
        let remedy = "correct the path, which is relative to the working directory";
        return Err(Error::new(ErrorKind::Missing, message).with_remedy(remedy));
    }
    let section = Section(serde_json::json!({ "path": path }));
    sqlite::Factory::default().build(&section, context).await
}

/// The databases of this build.
#[must_use]
pub fn registry() -> Registry<dyn Database> {
    let registry = Registry::new(FAMILY);
    #[cfg(feature = "sqlite")]
    let registry = registry.register(sqlite::Factory::default());
    #[cfg(not(feature = "sqlite"))]
    let registry = registry.compiled_out(super::compiled_out(FAMILY, "sqlite", &SQLITE_VARIABLES));
    #[cfg(feature = "postgres")]
    let registry = registry.register(postgres::Factory);
    #[cfg(not(feature = "postgres"))]
    let registry =
        registry.compiled_out(super::compiled_out(FAMILY, "postgres", &POSTGRES_VARIABLES));
    registry
}

/// A database for tests, used through the same layers as in the program.
#[cfg(test)]
pub(crate) fn managed(
    backend: &str,
    table: serde_json::Value,
    pool: crate::config::Pool,
    metrics: &crate::telemetry::metrics::Metrics,
    tasks: &crate::tasks::Tasks,
) -> crate::connection::Managed<dyn Database> {
    use crate::{
        config::Connection,
        connection::{Managed, Settings},
    };

    let database =
        Managed::new(registry(), "test".into(), metrics.connection(FAMILY), tasks.clone());
    database.start(Settings {
        backend: backend.to_owned(),
        section: Section(table),
        pool,
        ..Settings::from(&Connection::database())
    });
    database
}
