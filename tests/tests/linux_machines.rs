//! A distribution's kernel on machines of many sizes, through their lives.
//!
//! Needs a /dev/kvm that runs kernel code natively, and that several CPUs at once can use: the
//! host's, or the nested lab's with the host's clock (docs/lab.md).

use std::process::Command;
use std::time::Duration;

use regression::disk::{POWER_BUTTON, initramfs_with_modules};
use regression::facts;
use regression::machine::{Boot, microvm};
use regression::products::{kernel, product};
use regression::program::{Ended, retried, run, run_signalled, run_until_mark};

/// Far above what the slowest ground takes for the largest machine.
const DEADLINE: Duration = Duration::from_secs(90);
const BOTH: [Boot; 2] = [Boot::Firmware, Boot::Direct];

/// A machine.
struct Machine {
    cpus: u32,
    memory: &'static str,
    mib: u64,
    acpi: bool,
}

const fn machine(cpus: u32, memory: &'static str, mib: u64, acpi: bool) -> Machine {
    Machine { cpus, memory, mib, acpi }
}

fn linux(boot: Boot, machine: &Machine, append: &str) -> Command {
    let append = format!("console=ttyS0 {append}");
    let mut command = microvm(boot, machine.memory, &kernel(), &append);
    command.args(["-smp", &machine.cpus.to_string()]);
    if !machine.acpi {
        // Without ACPI there is no way to power off: it resets.
        command.args(["-M", "microvm,acpi=off", "-no-reboot"]);
    }
    command
}

fn with_init(mut command: Command) -> Command {
    command.arg("-initrd").arg(product("initramfs.cpio"));
    command
}

/// What no kernel may have to say of a machine.
const COMPLAINTS: [&str; 10] = [
    "[Firmware Bug]",
    "[Firmware Warn]",
    "ACPI Error",
    "ACPI BIOS Error",
    "lost interrupt",
    "nobody cared",
    "spurious",
    "calibration failed",
    "Unable to calibrate",
    "soft lockup",
];

fn is_complaint(line: &str, machine: &Machine) -> bool {
    // Of a machine without ACPI it says that there is none.
    let expected = !machine.acpi && line.contains("A valid RSDP was not found");
    !expected && COMPLAINTS.iter().any(|complaint| line.contains(complaint))
}

fn check(boot: Boot, machine: &Machine) {
    let ended = retried(|| run(&mut with_init(linux(boot, machine, "")), b"", DEADLINE));
    assert_eq!(ended.status, Some(0), "{ended}");
    let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no init: {ended}"));
    let cpus = if machine.acpi { machine.cpus } else { 1 };
    assert_eq!(facts["cpus"], cpus.to_string(), "{ended}");
    assert_eq!(facts["acpi"], if machine.acpi { "yes" } else { "no" });
    assert_eq!(facts["clocksource"], "kvm-clock");
    assert_ne!(facts["serial_irqs"], "0", "the console runs on its interrupt");
    check_memory(&facts["e820"], machine.mib, &ended);
    let complaint = ended.stdout.lines().find(|line| is_complaint(line, machine));
    assert_eq!(complaint, None, "{ended}");
    // The rate of its clock comes from the host, not from counting against another.
    assert!(ended.stdout.contains("kvm-clock: Using msrs"), "{ended}");
    assert_eq!(ended.stderr, "", "{ended}");
}

/// RAM is all that was asked for but the EBDA's KiB and the 384 KiB below 1 MiB, the part above
/// 3 GiB from 4 GiB on.
fn check_memory(e820: &str, mib: u64, ended: &Ended) {
    let ram: Vec<(u64, u64)> = e820
        .split(',')
        .filter_map(|entry| entry.strip_suffix(":System RAM"))
        .filter_map(|range| range.split_once('-'))
        .map(|(first, last)| {
            let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
            (number(first).unwrap(), number(last).unwrap() + 1)
        })
        .collect();
    let total: u64 = ram.iter().map(|(start, end)| end - start).sum();
    assert_eq!(total, (mib << 20) - (385 << 10), "{e820}: {ended}");
    let high = ram.iter().any(|(start, _)| *start == 4 << 30);
    assert_eq!(high, mib > 3072, "{e820}: {ended}");
    assert!(ram.iter().all(|(start, end)| *end <= 3 << 30 || *start >= 4 << 30), "{e820}");
}

/// Each machine is what was asked for, and its kernel complains of nothing.
macro_rules! machines {
    ($($name:ident: $machine:expr,)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn by_firmware() {
                check(Boot::Firmware, &$machine);
            }

            #[test]
            fn directly() {
                check(Boot::Direct, &$machine);
            }
        }
    )*};
}

// Each number of CPUs, each size of memory, with ACPI and without.
machines! {
    the_smallest: machine(1, "128M", 128, true),
    four_cpus: machine(4, "2048M", 2048, true),
    sixteen_cpus_up_to_the_hole: machine(16, "3072M", 3072, true),
    memory_above_4_gib: machine(2, "5G", 5120, true),
    no_acpi_up_to_the_hole: machine(1, "3072M", 3072, false),
    no_acpi_above_4_gib: machine(1, "5G", 5120, false),
    // Debian's kernel knows no MP tables, so it finds one CPU of the two.
    no_acpi_and_two_cpus: machine(2, "256M", 256, false),
}

/// The life of a machine is the same with any number of CPUs; one is what the lab runs best.
const ONE_CPU: Machine = machine(1, "256M", 256, true);

#[test]
fn a_guest_that_reboots_starts_again_three_times_in_one_process() {
    for boot in BOTH {
        let ended = retried(|| {
            let mut command = with_init(linux(boot, &ONE_CPU, "quiet guest.exit=reboot"));
            run_until_mark(&mut command, "guest-facts-end", 4, DEADLINE)
        });
        assert_eq!(ended.stdout.matches("init=1").count(), 4, "{ended}");
    }
}

#[test]
fn sigterm_ends_it_through_the_power_button() {
    let folder = tempfile::tempdir().unwrap();
    let initramfs = initramfs_with_modules(folder.path(), &POWER_BUTTON);
    for boot in BOTH {
        let ended = retried(|| {
            let mut command = linux(boot, &ONE_CPU, "guest.exit=power-button");
            command.arg("-initrd").arg(&initramfs);
            run_signalled(&mut command, "guest-power-button-ready", "TERM", DEADLINE)
        });
        assert!(ended.stdout.contains("Power down"), "{ended}");
        assert!(ended.stderr.contains("the power button is pressed"), "{ended}");
        assert_eq!(ended.status, Some(0), "{ended}");
    }
}
