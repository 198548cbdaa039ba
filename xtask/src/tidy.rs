//! The rules of this repository that no compiler knows.
//!
//! Sources are read as text: rustfmt, which runs before, makes that dependable. Numbers are
//! ceilings, not goals.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, process, workspace};

/// Lines of a file, its tests not counted.
const FILE_LINES: usize = 500;
/// Lines of a function, from its name to its last brace.
const FUNCTION_LINES: usize = 80;
/// Characters of a line.
const LINE_WIDTH: usize = 100;
/// Characters of a file's first line, after the comment mark.
const TAGLINE_WIDTH: usize = 80;

/// The files that may contain unsafe code. A new one is a decision: think twice, then add it.
const UNSAFE_FILES: [&str; 24] = [
    "guest/src/loopback.rs",
    "firmware/src/clock.rs",
    "firmware/src/entry.rs",
    "firmware/src/hardware.rs",
    "firmware/src/heap.rs",
    "firmware/src/main.rs",
    "firmware/src/msrs.rs",
    "tests/guest/src/mark.rs",
    "tests/payload/src/entry.rs",
    "tests/payload/src/hardware.rs",
    "tests/tests/contract.rs",
    "tests/tests/mapped_once.rs",
    "vmm/src/accel.rs",
    "vmm/src/farewell.rs",
    "vmm/src/machine.rs",
    "vmm/src/memory/mapping.rs",
    "vmm/src/signals.rs",
    "vmm/src/trace.rs",
    "vmm/src/vcpu.rs",
    "vmm/src/virtio/block/lock.rs",
    "vmm/src/virtio/buffers.rs",
    "vmm/src/virtio/net/tap.rs",
    "vmm/src/virtio/worker.rs",
    "vmm/src/workload/virtiofsd.rs",
];

/// What no file contains, and why. Each is put together here, so that this file passes too.
const FORBIDDEN: [(&str, &str); 4] = [
    (concat!("todo", "!("), "unfinished code"),
    (concat!("unimplemented", "!("), "unfinished code"),
    (concat!("#[", "ignore"), "a test that does not run"),
    (concat!("dbg", "!("), "a forgotten probe"),
];

/// Directories that differ between machines: no file names anything in them.
const PRIVATE_PLACES: [&str; 3] = ["/home/", "/root/", "/work/"];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 4] = ["utils", "common", "helpers", "manager"];

/// Packages of ours, and those they must not depend on.
const APART: [(&str, &[&str]); 5] = [
    ("abi", &["firmware", "guest", "payload", "pci", "regression", "vmm", "xtask"]),
    ("pci", &["firmware", "guest", "payload", "regression", "vmm", "xtask"]),
    ("firmware", &["guest", "payload", "regression", "vmm", "xtask"]),
    ("vmm", &["firmware", "guest", "payload", "pci", "regression", "xtask"]),
    ("payload", &["firmware", "guest", "pci", "regression", "vmm", "xtask"]),
];

/// Checks every file and every package; all findings are printed.
pub fn main() -> Result<()> {
    let mut findings = Vec::new();
    let mut paths = Vec::new();
    list(workspace::root(), &mut paths)?;
    paths.sort_unstable();
    for path in &paths {
        // Binary files have no lines to look at.
        let Ok(text) = fs::read_to_string(path) else { continue };
        let name = workspace::shown(path).to_string();
        findings
            .extend(examine(&name, &text).into_iter().map(|finding| format!("{name}:{finding}")));
    }
    for file in UNSAFE_FILES.iter().filter(|file| !workspace::root().join(file).is_file()) {
        findings.push(format!("{file}: on the list of unsafe files, but not there"));
    }
    for (package, strangers) in APART {
        findings.extend(dependencies(package, strangers)?);
    }
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("{} findings", findings.len())
}

/// The source files below a directory: no products, nothing hidden but the CI's program.
fn list(directory: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let reading = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".") && name != ".ci";
        if entry.file_type().with_context(reading)?.is_dir() {
            if !hidden && name != "target" {
                list(&entry.path(), paths)?;
            }
        } else if !hidden && name != "Cargo.lock" {
            paths.push(entry.path());
        }
    }
    Ok(())
}

/// What is wrong with a file, each finding as `line: what`.
fn examine(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some((needle, why)) = FORBIDDEN.iter().find(|(needle, _)| line.contains(needle)) {
            findings.push(format!("{number}: {needle:?}: {why}"));
        }
        if let Some(place) = PRIVATE_PLACES.iter().find(|place| names_file_in(line, place)) {
            findings.push(format!("{number}: {place:?}: a path of one machine"));
        }
        if line.contains(concat!("TO", "DO")) && !line.contains("issue") {
            findings.push(format!("{number}: a plan without an issue"));
        }
    }
    if name.ends_with(".rs") {
        examine_rust(name, text, &mut findings);
    }
    findings
}

/// Whether the line has a path into this directory: a test may well look for the bare name.
fn names_file_in(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line.get(..at).and_then(|rest| rest.chars().next_back());
        let after = line.get(at + place.len()..).and_then(|rest| rest.chars().next());
        // `target/work/x` is no path into `/work`.
        !before.is_some_and(|c| c.is_alphanumeric() || c == '.')
            && after.is_some_and(char::is_alphanumeric)
    })
}

fn examine_rust(name: &str, text: &str, findings: &mut Vec<String>) {
    let tagline = text.lines().next().and_then(|line| line.strip_prefix("//! "));
    if !tagline.is_some_and(|line| (1..=TAGLINE_WIDTH).contains(&line.chars().count())) {
        findings.push(format!("1: no `//!` line of at most {TAGLINE_WIDTH} characters"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        if line.chars().count() > LINE_WIDTH {
            findings.push(format!("{number}: more than {LINE_WIDTH} characters"));
        }
        if let Some(module) = module_name(line)
            && EMPTY_NAMES.contains(&module)
        {
            findings.push(format!("{number}: `{module}` says nothing about what is in it"));
        }
    }
    let opts_in = text.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("#")
            && (line.contains("expect(unsafe_code") || line.contains("allow(unsafe_code"))
    });
    match (opts_in, UNSAFE_FILES.contains(&name)) {
        (true, false) => findings.push("1: unsafe code, but not on the list of such files".into()),
        (false, true) => findings.push("1: on the list of unsafe files, but without need".into()),
        _ => {}
    }
    let code = without_tests(name, text);
    if code.len() > FILE_LINES {
        findings.push(format!("1: more than {FILE_LINES} lines: {}", code.len()));
    }
    for (number, length) in functions(&code) {
        if length > FUNCTION_LINES {
            findings.push(format!("{number}: a function of {length} lines"));
        }
    }
}

fn module_name(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("mod ")?;
    let is_item = before.is_empty() || before.starts_with("pub");
    is_item.then(|| rest.trim_end_matches([';', '{', ' ']))
}

/// The lines before the first test module; none of a file that is nothing but tests.
fn without_tests<'a>(name: &str, text: &'a str) -> Vec<&'a str> {
    let path = Path::new(name);
    let in_tests = path.parent().is_some_and(|folder| folder.ends_with("tests/tests"));
    if in_tests || path.ends_with("tests.rs") {
        return Vec::new();
    }
    let lines: Vec<_> = text.lines().collect();
    let starts_tests = |pair: &[&str]| {
        matches!(pair, [attribute, module] if *attribute == "#[cfg(test)]"
            && module.starts_with("mod ") && module.ends_with('{'))
    };
    let end = lines.windows(2).position(starts_tests).unwrap_or(lines.len());
    lines.into_iter().take(end).collect()
}

/// The line number and length of each function: rustfmt puts the brace that closes one under
/// its first word.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if !is_function(line.trim_start()) || line.ends_with('}') {
            continue;
        }
        let closes = |other: &&str| {
            other.trim_start().starts_with('}') && other.len() - other.trim_start().len() == indent
        };
        // A function without a body, in a trait, ends with its own line.
        let declares = |other: &&str| other.ends_with(';') && indent > 0;
        let rest = lines.get(index..).unwrap_or_default();
        let body_starts = rest.iter().position(|l| l.ends_with('{') || declares(l));
        let has_body = body_starts.and_then(|at| rest.get(at)).is_some_and(|l| l.ends_with('{'));
        if let Some(length) = rest.iter().position(closes).filter(|_| has_body) {
            found.push((index + 1, length + 1));
        }
    }
    found
}

fn is_function(line: &str) -> bool {
    let mut words = line.split(' ').skip_while(|word| {
        matches!(*word, "const" | "unsafe" | "async" | "extern" | "\"C\"")
            || word.starts_with("pub")
    });
    words.next() == Some("fn")
}

/// Which of `strangers` the package names as a dependency.
fn dependencies(package: &str, strangers: &[&str]) -> Result<Vec<String>> {
    let mut cargo = Command::new(build::cargo());
    cargo.args(["tree", "--package", package, "--depth", "1", "--prefix", "none"]);
    cargo.args(["--edges", "normal,build,dev"]).current_dir(workspace::root());
    let tree = process::output(&mut cargo)?;
    let named = tree.lines().skip(1).filter_map(|line| line.split(' ').next());
    let forbidden = named.filter(|name| strangers.contains(name));
    Ok(forbidden.map(|name| format!("{package}: must not depend on {name}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str, expected: &[&str]) {
        let findings = examine(name, text);
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        for (finding, part) in findings.iter().zip(expected) {
            assert!(finding.contains(part), "{finding:?} is not about {part:?}");
        }
    }

    #[test]
    fn clean_files_pass() {
        check("a.rs", "//! What it is.\n\nfn f() {\n    g();\n}\n", &[]);
        check("README.md", "any length ".repeat(20).as_str(), &[]);
    }

    #[test]
    fn forbidden_words_are_found_in_any_file() {
        check("a.md", concat!("see /ho", "me/x\n"), &["1: "]);
        check("a.md", concat!("target/wo", "rk/x, \"/ro", "ot/\"\n"), &[]);
        check("a.md", concat!("x\nTO", "DO: more\nTO", "DO (issue 7): more\n"), &["2: a plan"]);
        check("a.rs", concat!("//! A.\nfn f() { todo", "!() }\n"), &["2: "]);
    }

    #[test]
    fn rust_files_say_what_they_are() {
        check("a.rs", "fn f() {}\n", &["1: no `//!`"]);
        check("a.rs", &format!("//! {}\n", "x".repeat(81)), &["1: no `//!`"]);
        check("a.rs", "//! A.\npub mod helpers;\nmod commonplace;\n", &["2: `helpers`"]);
    }

    #[test]
    fn unsafe_files_are_on_the_list() {
        let text = "//! A.\n#![expect(unsafe_code, reason = \"r\")]\n";
        check("a.rs", text, &["not on the list"]);
        check(UNSAFE_FILES[0], text, &[]);
        check(UNSAFE_FILES[0], "//! A.\n", &["without need"]);
    }

    #[test]
    fn long_files_and_functions_are_found_but_not_in_tests() {
        let body = "    x();\n".repeat(FUNCTION_LINES);
        let long = format!("fn f(\n    a: u8,\n) {{\n{body}}}\n");
        check("a.rs", &format!("//! A.\n{long}"), &["2: a function of 84 lines"]);
        check("a.rs", &format!("//! A.\n#[cfg(test)]\nmod tests {{\n{long}}}\n"), &[]);
        check("a.rs", &format!("//! A.\n{}", "//\n".repeat(FILE_LINES)), &["1: more than"]);
        check("tests/tests/a.rs", &format!("//! A.\n{}", "//\n".repeat(FILE_LINES)), &[]);
    }

    #[test]
    fn functions_end_at_their_own_brace() {
        let text = "impl A {\n    fn f() {\n        if x {\n        }\n    }\n    pub const fn g() \
                    {}\n}\ntrait B {\n    fn h(\n    );\n    fn i() {\n    }\n}";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(functions(&lines), [(2, 4), (11, 2)]);
    }
}
