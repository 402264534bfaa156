//! Waiting for conditions: nothing sleeps for a time that was guessed.

use std::future::Future;
use std::time::Duration;

/// How long anything may take that no test has another opinion of. Machines that run tests are slow at times.
pub const PATIENCE: Duration = Duration::from_secs(45);

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
        loop {
            if let Some(value) = ask().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(PATIENCE, what, asking).await
}
