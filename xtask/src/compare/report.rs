//! A comparison and its conditions, for whoever wants to repeat it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::candidates::Candidate;
use super::observe::{self, Observed};
use crate::kernel::GuestKernel;
use crate::{build, fetch, process, workspace};

/// What was found, and under which conditions.
pub struct Report {
    /// The figures.
    pub rows: Vec<Observed>,
    /// Names and values, for people.
    pub conditions: Vec<(&'static str, String)>,
    /// Each row's command line, its paths from this repository's root.
    pub commands: Vec<String>,
}

impl Report {
    /// Gathers the conditions of these rows.
    pub fn new(
        kernel: &GuestKernel,
        qemu: &Path,
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
        let conditions = vec![
            ("clock", CLOCK.to_owned()),
            ("machine", "TCG of QEMU, one processor with SVM".to_owned()),
            ("host kernel", format!("Linux {}", fetch::kernel()?.release)),
            ("guest", guest),
            ("initramfs", format!("{} bytes, one static program", size(&initrd))),
            ("microvm", first_line(&microvm)?),
            ("QEMU", first_line(qemu)?),
        ];
        let root = format!("{}/", workspace::root().display());
        let command = |candidate: &Candidate| quote(&candidate.command).replace(&root, "");
        Ok(Self { rows, conditions, commands: candidates.iter().map(command).collect() })
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let mut rows = observe::to_json(&self.rows);
        for (row, command) in rows.as_array_mut().into_iter().flatten().zip(&self.commands) {
            row["command"] = command.as_str().into();
        }
        let conditions: serde_json::Map<_, _> =
            self.conditions.iter().map(|(name, value)| ((*name).into(), json!(value))).collect();
        json!({ "format": "microvm comparison 1", "conditions": conditions, "rows": rows })
    }
}

/// What the times are.
const CLOCK: &str = "virtual: one millisecond is a million instructions of VMM, host kernel \
                     and guest together, counted by QEMU (-icount); no hardware time";

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
