//! What other BIOSes for microVMs are known to get wrong.
//!
//! Each test is a command line with which qboot, or SeaBIOS's microVM build, hangs or damages what
//! the guest needs. The payload checks its entry, all tables' checksums and places, and memory.

use std::fs;
use std::process::Command;
use std::time::Duration;

use regression::disk::hash;
use regression::facts::{self, Facts};
use regression::machine::{choose_entry, qemu};
use regression::products::product;
use regression::program::{Ended, run};

/// Ten times what a loaded machine takes.
const DEADLINE: Duration = Duration::from_secs(100);
const MICROVMS: [&str; 2] = ["microvm", "microvm,acpi=off"];
const MACHINES: [&str; 5] = ["microvm", "microvm,acpi=off", "pc", "q35", "q35,acpi=off"];
const ENTRIES: [&str; 4] = ["16", "32", "64", "pvh"];

fn payload(machine: &str, memory: &str, entry: &str) -> Command {
    let name = if entry == "pvh" { "payload.elf" } else { "payload.bzImage" };
    let mut command = qemu(machine, memory, &product(name), "");
    choose_entry(&mut command, entry);
    command
}

fn passed(command: &mut Command) -> Facts {
    let ended = run(command, b"", DEADLINE);
    assert_eq!(ended.status, Some(33), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

/// One line and the status that goes with its number.
fn check_refusal(ended: &Ended, number: i32, reason: &str) {
    let line = format!("bios-microvm: error {number}: {reason}");
    assert_eq!(ended.stdout.trim(), line, "{ended}");
    assert_eq!(ended.status, Some(number * 2 + 1), "{ended}");
}

/// qboot does not know WRITE_POINTER and stops without a word.
#[test]
fn a_vm_generation_id_reaches_the_guest_and_its_address_the_host() {
    for machine in ["pc", "q35"] {
        for entry in ENTRIES {
            let mut command = payload(machine, "128M", entry);
            command.args(["-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"]);
            let facts = passed(&mut command);
            // The first three fields of a GUID are little-endian.
            let number = "af6e4e32d1d1f64bbf41b9bb6c91fb87";
            assert_eq!(facts["vm_generation_id"], number, "{machine} {entry}");
            assert_eq!(facts["vm_generation_id_told"], "ok", "{machine} {entry}");
        }
    }
}

/// qboot stops without a word.
#[test]
fn no_kernel_is_one_line_and_not_a_hang() {
    for machine in MACHINES {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", machine, "-accel", "tcg", "-nodefaults", "-no-user-config"]);
        command.args(["-nographic", "-serial", "stdio"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.arg("-bios").arg(product("bios-microvm.bin"));
        let ended = run(&mut command, b"", DEADLINE);
        check_refusal(&ended, 40, "no kernel: start the VMM with -kernel FILE");
    }
}

/// QEMU gives no address for an ELF kernel's header; qboot writes it to address 0.
#[test]
fn interrupt_vectors_and_bios_data_are_whole_at_every_entry() {
    for machine in MACHINES {
        for entry in ENTRIES {
            let facts = passed(&mut payload(machine, "128M", entry));
            assert_eq!(facts["low_memory"], "ok", "{machine} {entry}");
            assert_eq!(facts["entry"], entry, "{machine}");
        }
    }
}

/// qboot's table has room for 40 CPUs in the EBDA, and goes on into video memory.
#[test]
fn an_mp_table_of_many_cpus_stays_out_of_video_memory() {
    for machine in ["microvm,acpi=off", "q35,acpi=off"] {
        for cpus in ["40", "64", "200"] {
            let facts = passed(payload(machine, "128M", "64").args(["-smp", cpus]));
            assert_eq!((&*facts["mp_table"], &*facts["cpus"]), ("ok", cpus), "{machine}");
            let (start, size) = facts["mp_table_at"].split_once('+').unwrap();
            let number = |hex: &str| u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap();
            let (start, end) = (number(start), number(start) + number(size));
            // The EBDA, or the BIOS's segments (MultiProcessor Specification 1.4, chapter 4).
            let allowed = [(0x9_fc00, 0xa_0000), (0xe_0000, 0x10_0000)];
            let is_inside = allowed.iter().any(|&(from, to)| from <= start && end <= to);
            assert!(is_inside, "{machine}, {cpus} CPUs: {start:#x} to {end:#x}");
        }
    }
}

/// qboot's last entry has type 0 and no bytes on machines without MMCONFIG.
#[test]
fn no_entry_of_the_memory_map_is_empty_or_overlaps_another() {
    for machine in MACHINES {
        for entry in ENTRIES {
            let facts = passed(&mut payload(machine, "128M", entry));
            let number = |hex: &str| u64::from_str_radix(hex.trim_start_matches("0x"), 16).unwrap();
            let mut last_end = 0;
            for area in facts["e820"].split_terminator(',') {
                let (range, kind) = area.split_once(':').unwrap();
                let (start, size) = range.split_once('+').unwrap();
                let (start, size) = (number(start), number(size));
                assert!(start >= last_end && size > 0, "{machine} {entry}: {facts:?}");
                // RAM, reserved, ACPI's two, unusable (ACPI 6.5, table 15.3).
                assert!((1..=5).contains(&kind.parse().unwrap()), "{machine} {entry}: {facts:?}");
                last_end = start + size;
            }
            assert!(last_end > 0, "{machine} {entry}");
        }
    }
}

/// qboot has the host load it into nothing, and enters that.
#[test]
fn a_kernel_of_10_mib_in_2_mib_of_memory_is_refused() {
    let mut image = fs::read(product("payload.bzImage")).unwrap();
    image.resize(1024 + (10 << 20), 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    for machine in MICROVMS {
        for entry in ["16", "32", "64"] {
            let mut command = qemu(machine, "2M", file.path(), "");
            choose_entry(&mut command, entry);
            let reason = "the kernel needs 10 MiB at 0x100000, so at least 11 MiB of memory; \
                          there are 2";
            check_refusal(&run(&mut command, b"", DEADLINE), 44, reason);
        }
    }
}

/// They fill what qboot has reserved for them, and what comes next, the page of the NVDIMMs, pushes
/// them out of it.
#[test]
fn acpi_tables_of_128_kib_lie_in_reserved_memory_whole() {
    for (machine, memory) in [("q35,nvdimm=on", "128M,slots=2,maxmem=1G"), ("q35", "128M")] {
        for entry in ENTRIES {
            let facts = passed(payload(machine, memory, entry).args(["-smp", "64"]));
            let verdicts = ["acpi_places", "acpi_checksums"].map(|key| facts[key].as_str());
            assert_eq!(verdicts, ["ok", "ok"], "{machine} {entry}: {facts:?}");
            assert_eq!(facts["cpus"], "64", "{machine} {entry}");
        }
    }
}

/// With SeaBIOS the tables lie in the last page below 2 GiB, and over them the end of an initrd
/// that is no whole number of pages: QEMU puts it as high as it can.
#[test]
fn an_initrd_of_odd_size_at_2048_mib_leaves_the_acpi_tables_alone() {
    // It ends with the last byte of RAM, if it is put as high as its pages can be.
    const SIZE: usize = 10 * 4096 - 1;
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &bytes).unwrap();
    for machine in MACHINES {
        for entry in ENTRIES {
            let mut command = payload(machine, "2048M", entry);
            let facts = passed(command.arg("-initrd").arg(file.path()));
            assert_eq!(facts["initrd_hash"], hash(&bytes), "{machine} {entry}");
            if !machine.ends_with("off") {
                assert_eq!(facts["acpi_checksums"], "ok", "{machine} {entry}");
                assert_eq!(facts["acpi_places"], "ok", "{machine} {entry}");
            }
        }
    }
}
