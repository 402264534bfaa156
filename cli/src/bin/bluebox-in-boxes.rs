//! `bluebox`: what the image of proxies has of it; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    bluebox_cli::in_boxes()
}
