//! `cargo xtask check`: formatting, lints, and the rules of this repository.

use std::process::Command;

use anyhow::Result;

use crate::{build, compare, cost, process, tidy, workspace};

const FUZZ: &str = "--manifest-path=fuzz/Cargo.toml";
const FUZZ_TARGET: &str = "--target-dir=target/fuzz";

/// Runs all checks; the first that fails is the error.
pub fn main() -> Result<()> {
    eprintln!("check: formatting");
    cargo(&["fmt", "--all", "--check"])?;
    eprintln!("check: the rules of this repository");
    tidy::main()?;
    eprintln!("check: lints");
    cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    eprintln!("check: the fuzz targets, which are outside the workspace");
    cargo(&["fmt", FUZZ, "--check"])?;
    cargo(&["clippy", "--quiet", FUZZ, FUZZ_TARGET, "--all-targets", "--", "-D", "warnings"])?;
    eprintln!("check: lints of the freestanding programs");
    for package in ["firmware", "payload"] {
        build::lint_freestanding(package)?;
    }
    eprintln!("check: the budgets of the program and of the firmware");
    cost::check()?;
    eprintln!("check: the budget of a start");
    compare::check()?;
    eprintln!("check: passed");
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::run(Command::new(build::cargo()).args(arguments).current_dir(workspace::root()))
}
