//! Which call a request belongs to, as far as its `traceparent` says that.

use bluebox_observe::trace::Context;
use http::HeaderMap;

/// A trace, and the span in it that made a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    /// The trace's id.
    pub id: u128,
    /// The span's id.
    pub span: u64,
}

impl Trace {
    /// The one that a request names, if it names one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Context::of(headers).map(Into::into)
    }
}

/// Whether it is sampled does not count: an app may say otherwise and mean the same.
impl From<Context> for Trace {
    fn from(Context { trace: id, span, .. }: Context) -> Self {
        Self { id, span }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "(00-)?[0-9a-f-]{0,60}", bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = (Context::parse(text.as_bytes()), Context::parse(&bytes));
        }
    }
}
