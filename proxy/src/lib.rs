//! The proxy of a box. A call goes through it in one direction, and each stage is one module that can be read alone.
//!
//! Out of the app:
//!
//! - [`intercept`]: takes requests off the app's connections, and refuses what is no HTTP.
//! - [`route`]: decides: durable call, pass-through, Bluebox's own API, or a clear no.
//! - [`passthrough`]: what is no component goes its way, streaming.
//! - [`envelope`]: makes a call out of a request.
//! - [`append`]: makes it durable: from here on it is *accepted*.
//! - [`pending`]: waits for its outcome.
//! - [`respond`]: answers the app.
//!
//! Into the app: see [`inbound`].
//!
//! Used by both: [`config`], [`registry`] (which components there are), [`bulk`] (bodies, small and large), [`fields`] (which header fields
//! travel), [`problem`] (the proxy's own errors), [`calls`] (`http://bluebox/v1/calls/ID`), [`metrics`].

pub mod append;
pub mod bulk;
pub mod config;
pub mod envelope;
pub mod fields;
pub mod inbound;
pub mod pending;
pub mod prefer;
pub mod problem;
pub mod registry;
pub mod route;
