//! Applies missing migrations and logs each one, because a migration of a large database can take
//! long.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use diesel::backend::Backend;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};

/// Each migration is logged when it begins, so that the log names a slow one.
pub(super) fn apply<DB: Backend>(
    conn: &mut impl MigrationHarness<DB>,
    migrations: EmbeddedMigrations,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let pending = conn.pending_migrations(migrations)?;
    let begin = Instant::now();
    for (index, migration) in pending.iter().enumerate() {
        let (number, of, name) = (index + 1, pending.len(), migration.name());
        tracing::info!("migrating the schema, {number} of {of}: {name}");
        conn.run_migration(migration)?;
    }
    if !pending.is_empty() {
        tracing::info!(took_ms = in_ms(begin.elapsed()), "the schema is current");
    }
    Ok(())
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
