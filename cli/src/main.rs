//! `bluebox`: see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    bluebox_cli::main()
}
