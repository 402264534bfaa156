//! Into the app.
pub mod frontier;
pub mod owner;
pub mod partition;
pub mod recorded;
