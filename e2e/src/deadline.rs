//! Waiting for conditions: nothing sleeps for a time that was guessed.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take that no test has another opinion of. Machines that run tests are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(45);

/// The pauses between two questions: soon at first, so that what is quick costs nothing, then seldom, so that asking does not keep from going on what is waited for.
fn pauses() -> impl Iterator<Item = Duration> {
    let next = |pause: &Duration| Some((*pause * 2).min(Duration::from_millis(160)));
    std::iter::successors(Some(Duration::from_millis(10)), next)
}

/// Asks until the answer is `Some`, for as long as `patience`. For tests without a runtime.
///
/// # Panics
/// When it never is; with `what`.
pub fn wait_for<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    for pause in pauses() {
        if let Some(value) = ask() {
            return value;
        }
        assert!(began.elapsed() < patience, "waited in vain until {what}");
        std::thread::sleep(pause);
    }
    unreachable!("there is always another pause")
}

/// What the future gives, if it gives it in time.
///
/// # Panics
/// When it does not; with `what`.
pub async fn within<T>(time: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(time, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {time:?}: {what}"),
    }
}

/// Asks until the answer is `Some`, with [`PATIENCE`].
///
/// # Panics
/// When it never is; with `what`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        for pause in pauses() {
            if let Some(value) = ask().await {
                return value;
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("there is always another pause")
    };
    within(PATIENCE, what, asking).await
}
