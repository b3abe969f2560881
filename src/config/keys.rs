//! Keys as text: the tables and the name of a value, joined by dots.

/// `name` in the table `table`, which may be the root.
pub(super) fn join(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

/// The key and its parent tables, innermost first.
pub(super) fn lineage(key: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(key), |key| key.rsplit_once('.').map(|(table, _)| table))
}

/// True when one key equals or contains the other.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let is_in = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    is_in(one, other) || is_in(other, one)
}

/// The variable that sets `key`.
pub(super) fn variable_name(key: &str) -> String {
    format!("AGENTAREA_{}", key.replace('.', "__").to_uppercase())
}
