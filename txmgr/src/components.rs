//! The components that there are. Whoever joins names some, and may know of one before this process has read of it.

use std::pin::Pin;

use bluebox_core::ComponentName;

/// The components, as the process's own proxy reads of them.
pub trait Components: Send + Sync {
    /// Whether there is such a component, with this port, as far as is known.
    fn has(&self, name: &ComponentName, port: u16) -> bool;

    /// Waits until it is known whether there are these: afterwards all that had registered before is known. False when that can't be told now. Bounded in time (some seconds), and cancel safe.
    fn learn(&self, names: Vec<(ComponentName, u16)>) -> Learning<'_>;
}

/// What [`Components::learn`] says.
pub type Learning<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;
