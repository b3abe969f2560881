//! The folder of the configuration and the files in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    layer::{Layer, Origin, display_path},
    problem::{Place, Problem, Unclear},
    production::{self, PRODUCTION},
    toml_text,
};

/// The content of the files.
#[derive(Default)]
pub(super) struct Files {
    pub(super) layers: Vec<Layer>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// Which files are read.
pub(super) struct Folder<'a> {
    /// Where it is.
    pub(super) path: PathBuf,
    /// True when the operator named it. The default folder may be missing.
    pub(super) is_named: bool,
    pub(super) environment: &'a str,
    /// True when the operator named the environment.
    pub(super) environment_is_named: bool,
}

impl Folder<'_> {
    /// Reads the files of the folder.
    pub(super) fn read(&self, unclear: &mut Unclear) -> Files {
        let mut files = Files::default();
        let is_folder = self.check(&mut files, unclear);
        let own = self.path.join(format!("{}.toml", self.environment));
        let default = self.path.join("default.toml");
        let has_default = is_folder && files.add(&default, unclear);
        if self.environment == PRODUCTION {
            // The compiled-in file has the same rank as the shipped one, so `default.toml` cannot
            // weaken it.
            files.layers.push(production::compiled_in());
        }
        let has_own = is_folder && files.add(&own, unclear);
        if is_folder && self.environment_is_named && !has_own {
            files.warnings.push(format!(
                "ENVIRONMENT is {:?}, but {} does not exist",
                self.environment,
                display_path(&own).display()
            ));
        }
        if is_folder && self.is_named && !has_default && !has_own {
            let message = format!(
                "the configuration folder has neither default.toml nor {}.toml; it contains {}; \
                 mount or name the right folder, or leave out --config-dir and \
                 AGENTAREA_CONFIG_DIR to run on compiled defaults",
                self.environment,
                content(&self.path)
            );
            files.problems.push(file_problem(&self.path, message));
            unclear.add_unwritten();
        }
        files
    }

    /// Checks that the folder exists.
    fn check(&self, files: &mut Files, unclear: &mut Unclear) -> bool {
        let message = match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_named => {
                return false;
            }
            Ok(_) => "is a file, but the configuration is a folder of files; mount or name the \
                      folder"
                .to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "the configuration folder does not exist; create it, or leave out --config-dir and \
                 AGENTAREA_CONFIG_DIR to run on compiled defaults"
                    .to_owned()
            }
            Err(error) => format!("the configuration folder cannot be read: {error}"),
        };
        files.problems.push(file_problem(&self.path, message));
        unclear.add_unwritten();
        false
    }
}

impl Files {
    /// Whether anything exists at the path of the file.
    fn add(&mut self, path: &Path, unclear: &mut Unclear) -> bool {
        let text = match is_there(path) {
            Ok(false) => return false,
            Ok(true) => read(path),
            Err(problem) => Err(problem),
        };
        match text {
            Ok(text) => self.add_text(path, &text, unclear),
            Err(problem) => {
                self.problems.push(problem);
                unclear.add_unwritten();
            }
        }
        true
    }

    fn add_text(&mut self, path: &Path, text: &str, unclear: &mut Unclear) {
        let parsed = toml_text::parse(text);
        for problem in parsed.problems {
            self.problems.push(line_problem(path, Some(problem.line), problem.message));
        }
        unclear.extend(parsed.unclear);
        let origin = Origin::File { path: path.to_owned(), lines: parsed.lines };
        self.layers.push(Layer { origin, root: parsed.root.into() });
    }
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    fs::read_to_string(path).map_err(|error| file_problem(path, format!("cannot be read: {error}")))
}

pub(super) fn file_problem(path: &Path, message: String) -> Problem {
    line_problem(path, None, message)
}

pub(super) fn line_problem(path: &Path, line: Option<usize>, message: String) -> Problem {
    let place = Place::File { path: display_path(path), line };
    Problem::at(place, message)
}

/// Whether the file exists. Anything else at its path was meant to be that file, so it is a
/// problem.
pub(super) fn is_there(path: &Path) -> Result<bool, Problem> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(true),
        Ok(_) => {
            let hint = wrong_mount(path).unwrap_or("it is not a file");
            Err(file_problem(path, format!("cannot be read: {hint}")))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => {
                let target = target.display();
                Err(file_problem(path, format!("is a link to {target}, which does not exist")))
            }
            Err(_) => Ok(false),
        },
        Err(error) => Err(file_problem(path, format!("cannot be read: {error}"))),
    }
}

/// The usual reason for a folder in the place of a file.
pub(super) fn wrong_mount(path: &Path) -> Option<&'static str> {
    path.is_dir().then_some(
        "it is a folder; a container engine makes one where the file that it should mount does not \
         exist",
    )
}

/// The first names in a folder.
fn content(dir: &Path) -> String {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    match names.len() {
        0 => "nothing".to_owned(),
        1..=5 => names.join(", "),
        more => format!("{} and {} more", names[..5].join(", "), more - 5),
    }
}
