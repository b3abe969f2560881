//! Identifiers.

use uuid::Uuid;

/// The maximum length of an id that a client chooses.
pub const MAX_CLIENT_ID: usize = 200;

/// Returns a new id: a `UUIDv7` in lower case, so that ids sort by the time of their creation.
#[must_use]
pub fn new_id() -> String {
    #[cfg(test)]
    if let Some(id) = super::simulated::id() {
        return id;
    }
    Uuid::now_v7().to_string()
}

/// Checks an id that a client chooses for an execution.
///
/// # Errors
/// States the characters that an id may contain. An id becomes part of URLs, log lines and Temporal
/// workflow ids, so only characters that are plain in all three are allowed.
pub fn check_client_id(id: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:~".contains(c);
    if id.is_empty() || id.len() > MAX_CLIENT_ID || !id.chars().all(plain) {
        return Err(format!(
            "`id` must have 1 to {MAX_CLIENT_ID} characters out of letters, digits and - _ . : ~"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_sort_by_creation() {
        let first = new_id();
        let second = new_id();
        assert!(first < second, "{first} {second}");
    }

    #[test]
    fn ids_that_would_break_a_url_are_refused() {
        assert!(check_client_id("task-1:a.b_c~d").is_ok());
        for bad in ["", "a/b", "a b", "ä", &"x".repeat(MAX_CLIENT_ID + 1)] {
            assert!(check_client_id(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
