//! Where the log's tasks run.

use tokio::runtime::{Builder, Handle, Runtime as Tokio};

/// Where the log's tasks run.
pub(super) enum Runtime {
    /// On the runtime that the log was opened on.
    Shared(Handle),
    /// On its own: it was opened outside of any.
    Own(Handle, Option<Tokio>),
}

impl Runtime {
    /// The runtime of the caller, or a small one.
    pub(super) fn here() -> std::io::Result<Self> {
        Ok(match Handle::try_current() {
            Ok(handle) => Self::Shared(handle),
            Err(_) => {
                let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("log").build()?;
                Self::Own(runtime.handle().clone(), Some(runtime))
            }
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        match self {
            Self::Shared(handle) | Self::Own(handle, _) => handle,
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Self::Own(_, runtime) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}
