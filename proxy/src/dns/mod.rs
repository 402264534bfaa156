//! DNS for the app.

pub mod addresses;
pub mod resolv_conf;
