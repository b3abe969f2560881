//! The table of the backend `sqlite`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BackendConfig, TableProblem};

/// The database in one file, for one process.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub(super) struct Config {
    /// The file; it and its folder are made when missing. Beside it stand `-wal`, `-shm` and
    /// `.lock`.
    pub(super) path: PathBuf,
    /// What a commit waits for. `full`: what was accepted survives a power failure. `normal`: it
    /// survives the death of the process, and the last moments before a power failure may be lost.
    pub(super) synchronous: Synchronous,
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Synchronous {
    /// Until the disk has it.
    Full,
    /// Until the operating system has it.
    Normal,
}

impl Default for Config {
    fn default() -> Self {
        Self { path: PathBuf::from("data/agentarea.db"), synchronous: Synchronous::Full }
    }
}

impl BackendConfig for Config {
    fn check(&self) -> Vec<TableProblem> {
        // A URL is meant for another database, and would show in the address.
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
