//! Our BIOS under QEMU with more than one CPU: what all of them must have alike.

use std::process::Command;
use std::time::Duration;

use regression::facts::{self, Facts};
use regression::machine::qemu;
use regression::products::product;
use regression::program::{Ended, run};

/// Ten times what a loaded machine takes.
const DEADLINE: Duration = Duration::from_secs(200);
const MACHINES: [&str; 4] = ["microvm", "microvm,acpi=off", "pc", "q35"];

/// The payload on a machine with so many CPUs, told to read a register of all.
fn payload(machine: &str, cpus: usize, register: &str) -> Command {
    let append = format!("msr={register}");
    let mut command = qemu(machine, "128M", &product("payload.bzImage"), &append);
    command.args(["-smp", &cpus.to_string()]);
    command
}

fn passed(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(33), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

/// Adds `etc/msr_feature_control`, which QEMU itself gives to guests that may use VMX.
fn with_feature_control(mut command: Command, value: u64) -> (Command, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), value.to_le_bytes()).unwrap();
    let path = file.path().display();
    command.args(["-fw_cfg", &format!("name=etc/msr_feature_control,file={path}")]);
    (command, file)
}

/// QEMU's emulator has no such register, so its value cannot be seen here; but a CPU that does not
/// say that it has written it is an error.
#[test]
fn every_cpu_is_started_for_the_feature_control_that_the_host_asks_for() {
    for machine in MACHINES {
        for cpus in [1, 4, 200] {
            let (mut command, _file) = with_feature_control(payload(machine, cpus, "0x2ff"), 5);
            let facts = passed(&run(&mut command, b"", DEADLINE));
            assert_eq!(facts["cpus"], cpus.to_string(), "{machine}");
        }
    }
}

#[test]
fn every_cpu_has_the_same_memory_types() {
    for (machine, value) in [("pc", "0x806"), ("q35", "0x806"), ("microvm", "0x0")] {
        for cpus in [1, 4, 64] {
            let facts = passed(&run(&mut payload(machine, cpus, "0x2ff"), b"", DEADLINE));
            assert_eq!(facts["msr"], vec![value; cpus].join(","), "{machine}");
        }
    }
}
