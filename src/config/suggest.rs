//! "Did you mean": suggestions for names that do not exist.

/// The known key that `key` was probably meant to be.
pub(super) fn closest(key: &str, known: &[String]) -> Option<String> {
    if let Some(elsewhere) = moved(key, known) {
        return Some(elsewhere);
    }
    let flat = |key: &str| key.replace(['.', '_', '-'], "");
    let wanted = flat(key);
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &flat(candidate)), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= (wanted.len() / 4).clamp(1, 4))
        .map(|(_, candidate)| candidate.clone())
}

/// The only known key with the same last part, in the same section, or in all if the key has no
/// section: `event_broker.redis.url` for `event_broker.url`.
fn moved(key: &str, known: &[String]) -> Option<String> {
    let (section, name) = key.split_once('.').map_or((None, key), |(section, rest)| {
        (Some(section), rest.rsplit('.').next().unwrap_or(rest))
    });
    let mut matches = known.iter().filter(|candidate| {
        let in_section = section.is_none_or(|section| candidate.split('.').next() == Some(section));
        in_section && candidate.rsplit('.').next() == Some(name)
    });
    let found = matches.next()?;
    matches.next().is_none().then(|| found.clone())
}

/// The names that may stand in the table `parent`, in words.
pub(super) fn children(parent: &str, known: &[String]) -> String {
    let prefix = if parent.is_empty() { String::new() } else { format!("{parent}.") };
    let names: std::collections::BTreeSet<&str> = known
        .iter()
        .filter_map(|key| key.strip_prefix(&prefix))
        .filter_map(|rest| rest.split('.').next())
        .collect();
    if names.is_empty() {
        return "no key here".to_owned();
    }
    format!("one of {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// The word that `word` was probably meant to be.
pub(super) fn closest_word<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).clamp(1, 4))
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<String> {
        ["server", "server.port", "server.host", "event_broker", "event_broker.redis.url"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn a_typo_finds_the_key_that_was_meant() {
        assert_eq!(closest("server.prot", &known()).as_deref(), Some("server.port"));
        assert_eq!(
            closest("event-broker.redis.url", &known()).as_deref(),
            Some("event_broker.redis.url")
        );
        assert_eq!(
            closest("event_broker.url", &known()).as_deref(),
            Some("event_broker.redis.url")
        );
        assert_eq!(closest("server.colour", &known()), None);
    }

    #[test]
    fn a_key_without_its_section_finds_the_only_one_of_that_name() {
        assert_eq!(closest("port", &known()).as_deref(), Some("server.port"));
        assert_eq!(closest("name", &known()), None);
    }

    #[test]
    fn a_typo_finds_the_word_that_was_meant() {
        let known = ["echo", "http", "temporal"];
        for (word, meant) in [
            ("ehco", Some("echo")),
            ("HTTP", Some("http")),
            ("https", Some("http")),
            ("temproal", Some("temporal")),
            ("lambda", None),
            ("", None),
        ] {
            assert_eq!(closest_word(word, known).as_deref(), meant, "{word}");
        }
    }

    #[test]
    fn what_cannot_be_guessed_is_answered_with_what_there_is() {
        assert_eq!(children("server", &known()), "one of host, port");
    }
}
