//! Guards the database file: only one process may serve it, and it must stay the file that was
//! opened.
//!
//! `SQLite` silently keeps using a file that was deleted, replaced or emptied, and commits into it
//! are lost. So the path is looked up around each commit, which costs a microsecond, and must still
//! lead to the file that the connections have open.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use diesel::connection::{Instrumentation, InstrumentationEvent};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};

const BEGIN_ANEW: &str = "put it back, or restart the service to start with an empty one";

/// The identity of a file, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// The file at the path of the database.
struct Found {
    identity: Identity,
    size: u64,
}

/// The file that the last build has accepted.
#[derive(Clone, Copy, Debug)]
struct Known {
    identity: Identity,
    size: u64,
    /// It has been truncated since.
    is_damaged: bool,
}

const STILL_IN_USE: &str = "was replaced, and the one before is still in use";

/// Attached to each connection until it is closed, to track the file that the connections have
/// open.
#[derive(Debug)]
pub(super) struct OpenFile(Identity);

/// Stores it as instrumentation, which the driver drops only with the connection.
pub(super) struct Keeps {
    pub(super) _file: Arc<OpenFile>,
}

impl Instrumentation for Keeps {
    fn on_connection_event(&mut self, _: InstrumentationEvent<'_>) {}
}

/// Excludes a second process, because two processes would not see each other's wake-ups.
#[derive(Debug)]
pub(super) struct FileLock {
    pub(super) database: PathBuf,
    _file: File,
    /// The turn to write. `SQLite` has one writer at a time; a writer that finds the file locked
    /// polls it and blocks a thread. Here writers queue instead.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    /// The right to queue as a background writer.
    pub(super) background: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Option<Known>>,
    open: Mutex<Weak<OpenFile>>,
    /// The log that the connections write.
    log: Mutex<Option<Identity>>,
}

pub(super) fn unusable(what: &str, database: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Forbidden,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{what} for {} cannot be made", database.display())).with_source(error)
}

/// The file beside `database` whose name has this suffix.
fn beside(database: &Path, end: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

fn look_up(path: &Path) -> io::Result<Found> {
    let found = fs::metadata(path)?;
    let identity = Identity { device: found.dev(), inode: found.ino() };
    Ok(Found { identity, size: found.size() })
}

impl FileLock {
    fn path(database: &Path) -> PathBuf {
        beside(database, ".lock")
    }

    /// Whether another process holds the lock. Does not create the file.
    pub(super) fn is_held(database: &Path) -> bool {
        let file = File::open(Self::path(database));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    pub(super) fn acquire(database: &Path) -> Result<Self, Error> {
        let unusable = |what, error| unusable(what, database, error);
        if let Some(folder) = database.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| unusable("the folder", error))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(Self::path(database))
            .map_err(|error| unusable("the lock file", error))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                database: database.to_owned(),
                _file: file,
                turn: Arc::default(),
                background: Arc::default(),
                known: Mutex::default(),
                open: Mutex::default(),
                log: Mutex::default(),
            }),
            Err(TryLockError::WouldBlock) => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "{} is in use by another process; stop it, choose another file with \
                     DATABASE_URL=sqlite:PATH, or use PostgreSQL for several processes",
                    database.display()
                ),
            )
            .with_remedy(
                "let one process use the file, or use PostgreSQL, which several can share",
            )),
            Err(TryLockError::Error(error)) => Err(unusable("the lock", error)),
        }
    }

    /// Checks that a connection may be opened, and whether it may create the file: never where this
    /// process has used one before. All connections of one build must open the same file,
    /// `expected`.
    pub(super) fn may_open(&self, expected: Option<Identity>) -> Result<bool, Error> {
        let Some(known) = *self.known.lock() else { return Ok(true) };
        let found = self.find()?;
        if let Some(expected) = expected {
            self.compare(&Known { identity: expected, ..known }, &found)?;
        }
        if self.open.lock().upgrade().is_some_and(|open| open.0 != found.identity) {
            return Err(self.lost(STILL_IN_USE));
        }
        if found.identity != known.identity {
            self.set_log_aside()?;
        }
        Ok(false)
    }

    /// Moves a stale log aside. `SQLite` uses any log with the right name, and does not notice that
    /// it was written for a replaced file.
    fn set_log_aside(&self) -> Result<(), Error> {
        let log = beside(&self.database, "-wal");
        let ours = self.log.lock().take();
        if look_up(&log).ok().map(|found| found.identity) != ours || ours.is_none() {
            return Ok(());
        }
        let aside = beside(&self.database, "-wal.before");
        tracing::warn!("the log of the database that was replaced is kept as {}", aside.display());
        fs::rename(&log, &aside).map_err(|error| unusable("the new log", &self.database, error))
    }

    /// The file that a new connection has open. A new file is not opened while connections to the
    /// old one exist, because both would share the files beside it.
    pub(super) fn opened(&self) -> Result<(Identity, Arc<OpenFile>), Error> {
        let identity = self.look_up()?.identity;
        let mut open = self.open.lock();
        let file = match open.upgrade() {
            Some(file) if file.0 == identity => file,
            Some(_) => return Err(self.lost(STILL_IN_USE)),
            None => {
                let file = Arc::new(OpenFile(identity));
                *open = Arc::downgrade(&file);
                file
            }
        };
        Ok((identity, file))
    }

    /// Records that a connection has opened the log.
    pub(super) fn log_is_open(&self) {
        let log = look_up(&beside(&self.database, "-wal")).ok();
        *self.log.lock() = log.map(|found| found.identity);
    }

    /// Records that the file is intact, until a change is detected.
    pub(super) fn trust(&self) -> Result<(), Error> {
        let Found { identity, size } = self.find()?;
        *self.known.lock() = Some(Known { identity, size, is_damaged: false });
        Ok(())
    }

    /// `Some` if this process has used the file before; `true` inside if it was damaged since.
    pub(super) fn used_before(&self) -> Option<bool> {
        self.known.lock().map(|known| known.is_damaged)
    }

    /// Checks that the file is still the one that was opened. Returns its size if it has shrunk.
    pub(super) fn check(&self) -> Result<Option<u64>, Error> {
        let mut known = self.known.lock();
        let Some(known) = &mut *known else { return Ok(None) };
        let found = self.look_up()?;
        self.compare(known, &found)?;
        if found.size == 0 {
            // Later writes cannot restore the missing part.
            known.is_damaged = true;
            return Err(self.lost("was emptied"));
        }
        if found.size < known.size {
            return Ok(Some(found.size));
        }
        known.size = found.size;
        Ok(None)
    }

    /// Records that the file has shrunk without losing data.
    pub(super) fn has_shrunk_to(&self, size: u64) {
        if let Some(known) = &mut *self.known.lock() {
            known.size = size;
        }
    }

    /// Records that the file has shrunk and lost data.
    pub(super) fn is_truncated(&self) -> Error {
        if let Some(known) = &mut *self.known.lock() {
            known.is_damaged = true;
        }
        self.lost("was truncated")
    }

    pub(super) fn lost(&self, what: &str) -> Error {
        let database = self.database.display();
        let message = format!("{database} {what} while the service used it; {BEGIN_ANEW}");
        Error::new(ErrorKind::Missing, message)
            .with_remedy("put the file back, or restart the service to start with an empty one")
    }

    fn compare(&self, known: &Known, found: &Found) -> Result<(), Error> {
        if found.identity != known.identity {
            return Err(self.lost("was replaced"));
        }
        if known.is_damaged {
            return Err(self.lost("was truncated"));
        }
        Ok(())
    }

    /// The file at the path of the database, which was not empty before.
    fn find(&self) -> Result<Found, Error> {
        let found = self.look_up()?;
        if found.size == 0 {
            return Err(self.lost("was emptied"));
        }
        Ok(found)
    }

    fn look_up(&self) -> Result<Found, Error> {
        look_up(&self.database).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => self.lost("has gone"),
            _ => self.lost("has become inaccessible").with_source(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let held = FileLock::acquire(&path).unwrap();
        let error = FileLock::acquire(&path).unwrap_err();
        assert!(error.message().contains("in use by another process"), "{error}");
        assert!(error.remedy().is_some_and(|told| told.contains("let one process use the file")));
        drop(held);
        assert!(FileLock::acquire(&path).is_ok());
    }
}
