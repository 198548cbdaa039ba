//! The VMM's program: how large it is, and that it needs no file beside itself.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::{image, workspace};

/// Holds the program to the line `program bytes` of the budget.
pub fn check_budget(program: &Path, budget: &str) -> Result<()> {
    let elf = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
    check(&elf, budget).with_context(|| workspace::shown(program).to_string())
}

fn check(elf: &[u8], budget: &str) -> Result<()> {
    let limit = budget.lines().find_map(|line| line.strip_prefix("program "));
    let limit = limit.context("cost/budget.txt has no line for program")?;
    let limit: usize = limit.trim().parse().context("cost/budget.txt: program")?;
    if elf.len() > limit {
        bail!("the program has {} bytes; its budget is {limit}", elf.len());
    }
    if image::needs_loader(elf)? {
        bail!("the program is not static: it names a loader of shared libraries");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one segment of this type.
    fn elf(kind: u8) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 1];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        for (at, value) in [(0x10, 2), (0x12, 62), (0x20, 64), (0x34, 64), (0x36, 56), (0x38, 1)] {
            elf[at] = value;
        }
        // Its offset in the file and its size.
        (elf[64], elf[72], elf[96]) = (kind, 120, 1);
        elf
    }

    #[test]
    fn a_program_is_held_to_its_size_and_to_be_static() {
        let refused = |elf: &[u8], budget| check(elf, budget).map_err(|error| error.to_string());
        let (load, interpreter) = (elf(1), elf(3));
        assert_eq!(refused(&load, "# all\nprogram 121\n"), Ok(()));
        let large = refused(&load, "program 120\n").unwrap_err();
        assert!(large.contains("121 bytes; its budget is 120"), "{large}");
        assert!(refused(&interpreter, "program 121\n").unwrap_err().contains("not static"));
        assert!(refused(&load, "").is_err());
        assert!(refused(&load[..90], "program 121\n").is_err());
    }
}
