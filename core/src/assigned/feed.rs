//! Reads the partition itself for its owner, as far as that wants.

use std::collections::VecDeque;
use std::sync::Weak;

use tokio::sync::watch;

use super::ownership::Ownership;
use crate::log::{Read, Reader};

/// A feed that runs. Dropping it ends it.
pub(super) struct Feed {
    /// Tells this one from an earlier one.
    pub(super) run: u64,
    /// Records that are still wanted.
    pub(super) wanted: watch::Sender<u32>,
    task: tokio::task::AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Begins with nothing wanted yet.
    pub(super) fn start(run: u64, reader: Reader, ownership: Weak<Ownership>) -> Self {
        let (wanted, receiver) = watch::channel(0);
        Self { run, wanted, task: tokio::spawn(feed(run, reader, ownership, receiver)).abort_handle() }
    }
}

async fn feed(run: u64, mut reader: Reader, ownership: Weak<Ownership>, mut wanted: watch::Receiver<u32>) {
    let mut waiting = VecDeque::new();
    loop {
        if wanted.wait_for(|records| *records > 0).await.is_err() {
            return;
        }
        if waiting.is_empty() {
            match reader.next().await {
                Some(Read::Entries(entries)) => waiting.extend(entries),
                Some(Read::Truncated { wanted, start }) => {
                    let Some(ownership) = ownership.upgrade() else { return };
                    ownership.truncated(run, wanted, start);
                    continue;
                }
                None => return,
            }
        }
        let Some(ownership) = ownership.upgrade() else { return };
        if !ownership.hand_over(run, &mut waiting) {
            return;
        }
    }
}
