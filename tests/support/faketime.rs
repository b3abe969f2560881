//! A wall clock that jumps, for one program. Its monotonic clock is unaffected.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Setup;

/// The time as a program sees it.
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// The right time; kept in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        let clock = Self(folder.join("clock"));
        clock.jump(0);
        clock
    }

    /// The given number of seconds before or after the right time.
    pub(crate) fn jump(&self, seconds: i32) {
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(new, &self.0).unwrap();
    }

    /// Makes the program use this clock.
    pub(crate) fn rule(&self, setup: Setup) -> Setup {
        setup
            .variable("LD_PRELOAD", library().to_str().unwrap())
            .variable("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap())
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .variable("FAKETIME_CACHE_DURATION", "1")
    }
}

fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.find(|library| library.exists());
    found.expect("libfaketime is missing: apt-get install -y faketime")
}
