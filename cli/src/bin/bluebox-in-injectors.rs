//! `bluebox`: what the image of injectors has of it; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    bluebox_cli::in_injectors()
}
