//! Our BIOS under our own VMM: exits to user space, by its boot trace.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use abi::post;
use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::stub::{self, Entry};
use crate::lab::{self, Carried, LabRun};
use crate::{build, ground, workspace};

/// Exits from reset to the kernel's entry.
pub struct Exits {
    entry: Entry,
    exits: u64,
}

/// Runs the stub kernel by every entry.
pub fn measure(bios: &Path) -> Result<Vec<Exits>> {
    let microvm = build::build_vmm()?;
    // The stub runs on every /dev/kvm that can be used at all, interpreting or not.
    let here = ground::is_kvm_usable(&microvm)?;
    let folder = workspace::target("cost")?;
    let _lock = workspace::lock(&folder, "firmware-cost: waiting for another run to end")?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, vec![stub::FILLER; stub::INITRD_SIZE]).context("writing the initrd")?;
    let kernel = folder.join("kernel");
    let measure = |entry: Entry| {
        eprintln!("firmware-cost: ours under microvm, {}", entry.name());
        fs::write(&kernel, stub::kernel(entry)).context("writing the stub kernel")?;
        let files = [&microvm, bios, &kernel, &initrd];
        let (status, output) = run(files, entry, here)?;
        if status != i32::from(stub::EXIT) * 2 + 1 {
            bail!("microvm with {}: the stub kernel did not run (status {status})", entry.name());
        }
        let exits = exits(&output).context("the boot trace has no kernel entry")?;
        Ok(Exits { entry, exits })
    };
    Entry::ALL.into_iter().map(measure).collect()
}

/// Runs the VMM on this machine's KVM or in the lab; its status, and its output: the boot trace.
fn run(files: [&Path; 4], entry: Entry, here: bool) -> Result<(i32, Vec<u8>)> {
    let [microvm, bios, kernel, initrd] = files;
    let words = "-M microvm -m 128M -nodefaults -no-user-config -display none -serial null \
                 -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -boot-trace /dev/stdout";
    let mut arguments: Vec<OsString> = words.split_whitespace().map(Into::into).collect();
    for (option, file) in [("-bios", bios), ("-kernel", kernel), ("-initrd", initrd)] {
        arguments.extend([option.into(), file.into()]);
    }
    if let Some(choice) = entry.choice() {
        let choice = format!("name=opt/org.microvm/entry,string={choice}");
        arguments.extend(["-fw_cfg".into(), choice.into()]);
    }
    if here {
        let mut command = Command::new(microvm);
        let output = command.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = output.output().context("starting microvm")?;
        let status = output.status.code().context("microvm was killed")?;
        return Ok((status, output.stdout));
    }
    let program = std::iter::once(microvm.into());
    let mut lab_run = LabRun::new(program.chain(arguments));
    for file in files {
        lab_run.files.push(Carried { host: file.into(), guest: PathBuf::from(file) });
    }
    let outcome = lab::capture(&lab_run)?;
    Ok((outcome.status, outcome.stdout))
}

fn exits(trace: &[u8]) -> Option<u64> {
    let start = trace.iter().position(|byte| *byte == b'{')?;
    let mut values = serde_json::Deserializer::from_slice(trace.get(start..)?).into_iter::<Value>();
    let json = values.next()?.ok()?;
    let marks = json["boots"].get(0)?["marks"].as_array()?;
    marks.iter().find(|mark| mark["code"] == post::KERNEL_ENTRY)?["exits"].as_u64()
}

/// The figures for people.
pub fn table(exits: &[Exits]) -> String {
    let mut text =
        "ours under microvm, acpi=on; exits to user space, the boot trace's included:\n".to_owned();
    for Exits { entry, exits } in exits {
        text.push_str(&format!("{:14}{:8}{exits:>6}\n", "", entry.name()));
    }
    text
}

/// Holds the figures to the lines `microvm entry exits` of the budget.
pub fn check_budget(exits: &[Exits], budget: &str) -> Result<()> {
    for Exits { entry, exits } in exits {
        let name = format!("microvm {} ", entry.name());
        let line = budget.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.with_context(|| format!("cost/budget.txt has no line for {name}"))?;
        let limit: u64 = line.trim().parse().with_context(|| format!("cost/budget.txt: {name}"))?;
        if *exits > limit {
            bail!("the firmware costs {exits} exits under {name}; its budget is {limit}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_may_follow_other_output() {
        let trace = r#"hello {"boots":[{"marks":[{"code":48,"exits":9}]}]} and more"#;
        assert_eq!(exits(trace.as_bytes()), Some(9));
        assert_eq!(exits(b"{}"), None);
        assert_eq!(exits(b"nothing"), None);
    }

    #[test]
    fn more_exits_than_the_budget_are_an_error() {
        let exits = [Exits { entry: Entry::Pvh, exits: 10 }];
        assert!(check_budget(&exits, "microvm PVH 10\n").is_ok());
        assert!(check_budget(&exits, "microvm PVH 9\n").is_err());
        assert!(check_budget(&exits, "").is_err());
    }
}
