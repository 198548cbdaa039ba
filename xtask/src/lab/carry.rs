//! What a program needs beside itself: its libraries, and a shell's everyday tools.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::initramfs::Archive;
use crate::process;

/// Programs that run other programs by name.
const SHELLS: [&str; 3] = ["sh", "bash", "dash"];

/// What one-liners are made of. Those that the host lacks are left out.
const TOOLS: [&str; 21] = [
    "cat",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "dmesg",
    "echo",
    "env",
    "grep",
    "head",
    "ls",
    "mkdir",
    "mount",
    "ps",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "wc",
];

/// Adds a few of the host's tools when the command is a shell, so that one-liners work.
pub fn add_shell_tools(archive: &mut Archive, program: &Path) -> Result<()> {
    let is_shell = program.file_name().is_some_and(|name| SHELLS.iter().any(|s| name == *s));
    if !is_shell {
        return Ok(());
    }
    for tool in TOOLS.iter().filter_map(process::find) {
        if !archive.has_file(&tool) {
            archive.host_file(&tool, &tool)?;
        }
    }
    Ok(())
}

/// Adds the libraries and the loaders of all dynamic programs in the tree.
pub fn add_libraries(archive: &mut Archive) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for file in archive.host_files() {
        if is_elf(&file).with_context(|| format!("reading {}", file.display()))? {
            libraries.extend(ldd(&file)?);
        }
    }
    for library in libraries {
        if !archive.has_file(&library) {
            archive.host_file(&library, &library)?;
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> std::io::Result<bool> {
    let mut magic = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    Ok(magic == b"\x7fELF")
}

/// The libraries that the loader would map; none for what it does not load.
fn ldd(program: &Path) -> Result<Vec<PathBuf>> {
    let mut command = Command::new("ldd");
    command.arg(program).env("LC_ALL", "C").stdin(Stdio::null());
    // It fails for static programs and foreign ones, which need nothing.
    let answer = command.output().context("running ldd")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&answer.stdout)))
}

fn parse_ldd(answer: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (line, _address) = line.trim().rsplit_once(" (")?;
        let path = line.rsplit_once("=> ").map_or(line, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    answer.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_absolute_paths() {
        let answer = "\tlinux-vdso.so.1 (0x00007ffd3)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\
                      \tlibgone.so => not found\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(answer), expected.map(PathBuf::from));
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }
}
