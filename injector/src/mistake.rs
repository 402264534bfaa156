//! What is wrong with a pod, in words that help who wrote it.

/// One thing that is wrong: where, what it says, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {value:?}: {remedy}")]
pub struct Mistake {
    place: String,
    value: String,
    remedy: String,
}

/// What is echoed of a text from outside, at most.
const ECHO: usize = 80;

impl Mistake {
    /// A mistake at `place`, which says `value`; `remedy` is what would be right.
    pub fn new(place: impl Into<String>, value: &str, remedy: impl Into<String>) -> Self {
        Self { place: shortened(&place.into()), value: shortened(value), remedy: remedy.into() }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(ECHO) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is said of a pod that can't have the proxy begins with this.
pub const DENIED: &str = "Bluebox can't put its proxy into this pod";

/// All that is wrong with a pod, as one message.
pub fn denial(mistakes: &[Mistake]) -> String {
    /// More than that nobody reads; what is not said now is said at the next try.
    const SAID: usize = 10;
    let mut text = format!("{DENIED}: ");
    for (number, mistake) in mistakes.iter().take(SAID).enumerate() {
        if mistakes.len() > 1 {
            text.push_str(&format!("{}({}) ", if number == 0 { "" } else { " " }, number + 1));
        }
        text.push_str(&mistake.to_string());
        text.push(if mistakes.len() > 1 { ';' } else { '.' });
    }
    if mistakes.len() > SAID {
        text.push_str(&format!(" and {} more;", mistakes.len() - SAID));
    }
    if text.ends_with(';') {
        text.pop();
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_says_all_of_them_and_is_bounded() {
        let mistake = |n: usize| Mistake::new(format!("annotation {n}"), &"é".repeat(5000), "write less");
        assert!(denial(&[mistake(1)]).ends_with("write less."));
        let many: Vec<_> = (0..5000).map(mistake).collect();
        let text = denial(&many);
        assert!(text.contains("(10) annotation 9") && text.ends_with("and 4990 more."), "{text}");
        assert!(text.len() < 4000, "{}", text.len());
    }
}
