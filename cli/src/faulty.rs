//! `bluebox-faulty`: the same as `bluebox`, with fail points and planted bugs; see `bluebox_core::faults`. For tests only.
//!
//! `bluebox-faulty fail-points` and `bluebox-faulty planted-bugs` list them: a name, a tab, and what it is.

use std::process::ExitCode;

use bluebox_core::faults::{Bug, Point};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("fail-points") => Point::ALL.iter().for_each(|point| println!("{}\t{}", point.name(), point.says())),
        Some("planted-bugs") => Bug::ALL.iter().for_each(|bug| println!("{}\t{}", bug.name(), bug.says())),
        _ => return bluebox_cli::main(),
    }
    ExitCode::SUCCESS
}
