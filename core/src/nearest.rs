//! "Did you mean": the known name that an unknown one is nearest to.

/// Longer texts are no slips of known names; and they come from outside, so that comparing them must not cost more.
const MAX_BYTES: usize = 64;

/// Of the names that are known in a place, the one that was most likely meant; `None` if none is near. `a_b` and `aB` count as `a-b`.
pub fn nearest<'k>(unknown: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    if unknown.len() > MAX_BYTES {
        return None;
    }
    let written = kebab(unknown);
    let distances = known.into_iter().map(|name| (strsim::damerau_levenshtein(&written, &kebab(name)), name));
    distances.min().filter(|(distance, name)| *distance <= 2.max(name.len() / 4)).map(|(_, name)| name)
}

fn kebab(name: &str) -> String {
    name.chars().fold(String::with_capacity(name.len()), |mut kebab, c| {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(if c == '_' { '-' } else { c.to_ascii_lowercase() });
        kebab
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_nothing_else() {
        let known = ["command", "attempt-timeout", "time_limit_ms"];
        for (unknown, name) in [
            ("comand", Some("command")),
            ("attempt_timeout", Some("attempt-timeout")),
            ("atempt-timout", Some("attempt-timeout")),
            ("timeLimitMs", Some("time_limit_ms")),
            ("surprise", None),
            ("", None),
        ] {
            assert_eq!(nearest(unknown, known), name, "{unknown}");
        }
        assert_eq!(nearest(&"command".repeat(1_000_000), known), None);
        assert_eq!(nearest("command", []), None);
    }
}
