//! Secrets from files: each `x_file` names the file that holds `x`.

use std::path::Path;

use serde_json::Value;

use super::{
    files::wrong_mount,
    given::given_path,
    keys::join,
    problem::{Problem, Unclear},
    schema::is_secret,
    tree::Tree,
    values::SecretFromFile,
};

/// Reads each `x_file` and stores its content as `x`. A secret that cannot be read is added to
/// `unclear`.
pub(super) fn resolve(
    tree: &mut Tree,
    schema: &Value,
    working_dir: &Path,
    unclear: &mut Unclear,
) -> Vec<Problem> {
    let mut keys = Vec::new();
    secret_keys(schema, "", &mut keys);
    let mut problems = Vec::new();
    for key in keys {
        let file_key = format!("{key}_file");
        let Some(path) = tree.find(&file_key).and_then(|path| path.as_str()) else { continue };
        match read(tree, &key, path, working_dir) {
            Ok(secret) => tree.put_secret(&key, &file_key, secret),
            Err(message) => {
                let place = tree.place(&file_key);
                tree.take(&file_key);
                unclear.add(&key);
                problems.push(Problem { key: file_key, place, message, suggestion: None });
            }
        }
    }
    problems
}

fn read(tree: &Tree, key: &str, path: &str, working_dir: &Path) -> Result<SecretFromFile, String> {
    let inline = tree.place(key).filter(|place| tree.find(key).is_some() && !place.is_compiled());
    if let Some(inline) = inline {
        let name = key.rsplit('.').next().unwrap_or_default();
        return Err(format!("{name} is also set ({inline}); give only one of the two"));
    }
    let file = working_dir.join(path);
    let shown = given_path(path);
    match read_secret(&file) {
        Ok(value) if value.is_empty() => Err(format!("{shown} is empty")),
        Ok(value) => Ok(SecretFromFile { value, file }),
        Err(error) => {
            let hint = wrong_mount(&file).map(|hint| format!("; {hint}")).unwrap_or_default();
            Err(format!("{shown} cannot be read: {error}{hint}"))
        }
    }
}

/// Reads a secret from its file, without the trailing line break that editors and `echo` add.
///
/// # Errors
/// When the file cannot be read.
pub fn read_secret(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim_end_matches(['\r', '\n']).to_owned())
}

fn secret_keys(schema: &Value, prefix: &str, keys: &mut Vec<String>) {
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let key = join(prefix, name);
        if is_secret(inner) {
            keys.push(key);
        } else {
            secret_keys(inner, &key, keys);
        }
    }
}
