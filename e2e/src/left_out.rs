//! What a run leaves out, because something is missing on the machine: said where it is seen.

use std::fs::File;
use std::io::Write as _;

/// Says that something is not tested. `make test` says it again at its end, because a test that passes keeps to itself what it prints.
pub fn left_out(what: &str, why: &str) {
    let why = why.trim();
    eprintln!("LEFT OUT: {what}: {why}");
    // Whoever runs the tests by hand has named no file.
    let Some(path) = std::env::var_os("BLUEBOX_LEFT_OUT") else { return };
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    writeln!(file, "{what}: {}", why.lines().last().unwrap_or_default()).unwrap();
}

/// The same of what has to be there with `CI` in the environment, where it was installed beforehand.
///
/// # Panics
/// With `CI` in the environment.
pub fn left_out_at_home(what: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what}: {why}");
    left_out(what, why);
}
