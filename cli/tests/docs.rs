//! The reference must name everything that can be said.

mod common;

use common::{bluebox, run};

#[test]
fn every_flag_and_variable_is_in_the_reference() {
    let page = |name: &str| std::fs::read_to_string(format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    // What the transaction manager is told besides is on its own page.
    let reference = page("configuration.md") + &page("transactions.md");
    let mut missing = Vec::new();
    for command in ["up", "proxy", "txmgr"] {
        let (status, help) = run(bluebox().args([command, "--help"]));
        assert!(status.success());
        let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
        for flag in words.filter_map(|word| word.strip_prefix("--")).filter(|flag| !["", "help"].contains(flag)) {
            if !reference.contains(&format!("`{flag}`")) && !reference.contains(&format!("--{flag}")) {
                missing.push(format!("{command} --{flag}"));
            }
            // Every flag can be explained, and is.
            assert!(!help.contains(&format!("--{flag}\n\n")), "--{flag} has no words of help");
        }
    }
    missing.dedup();
    assert!(missing.is_empty(), "docs/configuration.md does not name {missing:?}");
}

#[test]
fn every_command_teaches_by_example() {
    let (_, help) = run(bluebox().arg("--help"));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).map_while(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 15 && commands.contains(&"txn"), "{commands:?}");
    for command in commands {
        let (status, help) = run(bluebox().args([command, "--help"]));
        assert!(status.success() && help.contains("Examples:\n") && help.contains(&format!("bluebox {command}")), "{command}: {help}");
    }
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let (status, made) = run(bluebox().arg("metrics-reference"));
    assert!(status.success());
    assert!(made.contains("bluebox_call_duration_seconds{component,direction,stage}"), "{made}");
    assert!(
        page.trim_end() == made.trim_end(),
        "docs/metrics.md is not what the code says: `bluebox metrics-reference > docs/metrics.md`, and look at what has changed"
    );
}
