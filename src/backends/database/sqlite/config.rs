//! The table of the backend `sqlite`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BackendConfig, TableProblem};

/// A database in one file, for one process.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// The path of the file; it and its folder are created if missing. `SQLite` and the service
    /// keep `-wal`, `-shm` and `.lock` files beside it.
    pub(super) path: PathBuf,
    /// When a commit returns. `full`: after the data is on disk, so accepted work survives a power
    /// failure. `normal`: after the operating system has it; accepted work survives a crash of the
    /// process, but the last moments before a power failure may be lost.
    pub(super) synchronous: Synchronous,
}

/// When a commit returns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Synchronous {
    /// After the data is on disk.
    Full,
    /// After the operating system has the data.
    Normal,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: PathBuf::from("data/agentarea.db"), synchronous: Synchronous::Full }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        // A URL is meant for another database, and its password would show in the address.
        let is_url = self.path.to_string_lossy().contains("://");
        let usable =
            !is_url && self.path.file_name().is_some() && self.path != Path::new(":memory:");
        if usable {
            return Vec::new();
        }
        vec![("path", "must be the path of a file, such as \"data/agentarea.db\"".to_owned())]
    }

    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn place_of_data(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }
}
