//! What every part shows of itself.
//!
//! - [`counts`]: counters, gauges and histograms, each described where it is made.
//! - [`handles`]: counts by word, without a lock or an allocation once a word was seen.
//! - [`reference`](mod@reference): the page that says what there is, out of those descriptions.
//! - [`listener`]: where a part is asked, over HTTP.
//! - [`level`]: what it logs, changed while it runs.
//! - [`trace`]: where the time of a call went.

pub mod counts;
pub mod handles;
pub mod level;
pub mod listener;
pub mod reference;
pub mod trace;

pub use counts::Counts;
pub use handles::{During, Words, WordsOf};

/// An error with its causes.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
