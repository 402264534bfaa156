//! The log in the process of `bluebox up`.
