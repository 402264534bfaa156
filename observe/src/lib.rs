//! What every part shows of itself.
//!
//! - [`counts`]: counters, gauges and histograms, each described where it is made.
//! - [`handles`]: counts by word, without a lock or an allocation once a word was seen.
//! - [`reference`](mod@reference): the page that says what there is, out of those descriptions.
//! - [`listener`]: where a part is asked, over HTTP.

pub mod counts;
pub mod handles;
pub mod listener;
pub mod reference;

pub use counts::Counts;
pub use handles::{During, Words, WordsOf};
