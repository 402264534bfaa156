//! What processes of a run need to end with it.

use std::io::BufRead as _;

use nix::sys::prctl;
use nix::sys::signal::Signal;

/// This process ends when its standard input does, or the thread that started it.
pub(crate) fn end_with_parent() {
    on_line(|_| {});
}

/// Calls back for each line on the standard input; the process ends when that does, or the thread that started it.
pub(crate) fn on_line(mut tell: impl FnMut(&str) + Send + 'static) {
    // Also a stopped process must not stay. Where the kernel can't do that there is still the standard input.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            tell(line.trim());
        }
        std::process::exit(137);
    });
}
