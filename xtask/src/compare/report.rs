//! A comparison and its conditions, for whoever wants to repeat it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Clock;
use super::candidates::Candidate;
use super::observe::{self, Observed};
use super::{stages, table};
use crate::kernel::GuestKernel;
use crate::{build, fetch, process, workspace};

/// What was found, and under which conditions.
pub struct Report {
    /// The figures.
    pub rows: Vec<Observed>,
    /// What else was found.
    pub extras: Vec<Extra>,
    /// Names and values, for people.
    pub conditions: Vec<(&'static str, String)>,
    /// What the figures mean.
    pub notes: String,
    /// Each row's command line, its paths from this repository's root.
    pub commands: Vec<String>,
}

/// A table beside the figures.
pub struct Extra {
    /// Its name in JSON.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// Its lines, the heading first.
    pub lines: Vec<Vec<String>>,
    /// The same for programs.
    pub json: Value,
}

impl Report {
    /// Gathers the conditions of these rows.
    pub fn new(
        clock: Clock,
        kernel: &GuestKernel,
        candidates: &[Candidate],
        rows: Vec<Observed>,
    ) -> Result<Self> {
        let microvm = workspace::product(build::MICROVM)?;
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
        let guest = format!(
            "Linux {}, vmlinux {} bytes, bzImage {} bytes; 128 MiB, one CPU, no devices but COM1",
            kernel.release,
            size(&kernel.vmlinux),
            size(&kernel.bzimage)
        );
        let initrd = workspace::product(build::INITRAMFS)?;
        let mut conditions = clock.conditions()?;
        conditions.extend([
            ("guest", guest),
            ("initramfs", format!("{} bytes, one static program", size(&initrd))),
            ("microvm", format!("{}, commit {}", first_line(&microvm)?, commit())),
            ("QEMU", first_line(&fetch::qemu()?)?),
            ("packages", PACKAGES.map(package).join(", ")),
        ]);
        let root = format!("{}/", workspace::root().display());
        let command = |candidate: &Candidate| quote(&candidate.command).replace(&root, "");
        let commands = candidates.iter().map(command).collect();
        let (extras, notes) = (stages::extra(&rows).into_iter().collect(), table::notes(clock));
        Ok(Self { rows, extras, conditions, notes, commands })
    }

    /// For people, as text.
    pub fn to_text(&self) -> String {
        let mut text = table::rows(&self.rows);
        for Extra { title, lines, .. } in &self.extras {
            text += &format!("\n{title}\n{}", table::align(lines));
        }
        text + &self.notes
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let mut rows = observe::to_json(&self.rows);
        for (row, command) in rows.as_array_mut().into_iter().flatten().zip(&self.commands) {
            row["command"] = command.as_str().into();
        }
        let conditions: serde_json::Map<_, _> =
            self.conditions.iter().map(|(name, value)| ((*name).into(), json!(value))).collect();
        let mut report =
            json!({ "format": "microvm comparison 1", "conditions": conditions, "rows": rows });
        for extra in &self.extras {
            report[extra.key] = extra.json.clone();
        }
        report
    }
}

impl Clock {
    /// Where it was measured, and by what.
    fn conditions(self) -> Result<Vec<(&'static str, String)>> {
        let (clock, machine) = match self {
            Self::Instructions => (INSTRUCTIONS, MACHINE),
            Self::Lab { .. } => (UNSTEADY, MACHINE),
            Self::Host { .. } => return host(),
        };
        let host = fetch::kernel()?;
        Ok(vec![
            ("clock", clock.to_owned()),
            ("machine", machine.to_owned()),
            ("host kernel", format!("Linux {}, {}", host.release, huge_pages(&host)?)),
        ])
    }
}

/// What this machine is.
fn host() -> Result<Vec<(&'static str, String)>> {
    let read =
        |path: &str| std::fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let processors = read("/proc/cpuinfo")?;
    let models = processors.lines().filter_map(|line| line.strip_prefix("model name\t: "));
    let memory = read("/proc/meminfo")?;
    let total = memory.lines().next().and_then(|line| line.strip_prefix("MemTotal:"));
    let (count, model) = (models.clone().count(), models.clone().next().unwrap_or("unknown"));
    let machine = format!("{count} processors, {model}; {} of memory", total.unwrap_or("?").trim());
    let huge = read("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let kernel = process::output(Command::new("uname").args(["-srm"]))?;
    Ok(vec![
        ("clock", WALL.to_owned()),
        ("machine", machine),
        ("host kernel", format!("{}, huge pages: {}", kernel.trim(), huge.trim())),
    ])
}

/// What the times are.
const INSTRUCTIONS: &str = "virtual: one millisecond is a million instructions of VMM, host kernel \
                     and guest together, or a sleep of that length, counted by QEMU (-icount \
                     shift=0,sleep=off); no hardware time";
const UNSTEADY: &str = "the lab's, which follows this machine's: to try the runs of a native KVM \
                        out; its times mean nothing";
const WALL: &str =
    "CLOCK_MONOTONIC of this machine: hardware times, of this machine and this moment";
/// Where the lab's kernel says how it treats huge pages when it is not told.
const HUGE_PAGES: &str = "CONFIG_TRANSPARENT_HUGEPAGE_";
/// Packages whose files take part.
const PACKAGES: [&str; 2] = ["qemu-system-data", "seabios"];

/// Where all of it runs.
const MACHINE: &str = "q35 of QEMU's emulator (TCG), one processor (EPYC with SVM and NPT), 2 GiB";

/// Whether the lab's kernel gives huge pages to all, or to who asks.
fn huge_pages(kernel: &fetch::Kernel) -> Result<String> {
    let path = kernel.vmlinuz.with_file_name(format!("config-{}", kernel.release));
    let config = std::fs::read_to_string(&path);
    let config = config.with_context(|| format!("reading {}", path.display()))?;
    let lines = config.lines().filter(|line| line.starts_with(HUGE_PAGES) && line.ends_with("=y"));
    Ok(lines.collect::<Vec<_>>().join(", "))
}

/// What this tree is, as far as git knows.
fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(workspace::root());
    process::output(&mut git).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// The version of a package that is installed.
fn package(name: &str) -> String {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${Version}", name]);
    process::output(&mut query).unwrap_or_else(|_| format!("{name} (version unknown)"))
}

/// A program's word on its version.
fn first_line(program: &Path) -> Result<String> {
    let text = process::output(Command::new(program).arg("--version"))?;
    text.lines()
        .next()
        .map(str::to_owned)
        .with_context(|| format!("{} --version", program.display()))
}

/// As a shell reads it.
fn quote(words: &[String]) -> String {
    let quoted = words.iter().map(|word| match word.contains(' ') {
        true => format!("'{word}'"),
        false => word.clone(),
    });
    quoted.collect::<Vec<_>>().join(" ")
}
