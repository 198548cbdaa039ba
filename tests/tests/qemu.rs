//! Our BIOS under QEMU's microvm: a drop-in for the one it comes with.

use std::process::Command;
use std::time::Duration;

use regression::facts::{self, Facts, differences};
use regression::machine::qemu;
use regression::products::{kernel, product};
use regression::program::{Ended, run};

/// Ten times what a loaded machine takes.
const DEADLINE: Duration = Duration::from_secs(100);
const MACHINES: [&str; 2] = ["microvm", "microvm,acpi=off"];

fn payload(machine: &str, memory: &str) -> Command {
    let mut command = qemu(machine, memory, &product("payload.bzImage"), "hello world");
    command.arg("-initrd").arg(product("initramfs.cpio"));
    command
}

fn passed(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(33), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

#[test]
fn the_payload_passes_with_acpi_and_without_by_every_entry() {
    for machine in MACHINES {
        let [by_64, by_32, by_16] = ["64", "32", "16"].map(|entry| {
            let choice = format!("name=opt/org.microvm/entry,string={entry}");
            passed(&run(payload(machine, "128M").args(["-fw_cfg", &choice]), b"", DEADLINE))
        });
        let entries = [&by_64, &by_32, &by_16].map(|facts| facts["entry"].as_str());
        assert_eq!(entries, ["64", "32", "16"]);
        assert_eq!(differences(&by_64, &by_32, &["entry"]), [""; 0], "{machine}");
        let real_mode = ["entry", "zero_page", "real_mode", "bios_memory"];
        assert_eq!(differences(&by_64, &by_16, &real_mode), [""; 0], "{machine}");
        let acpi = if machine == "microvm" { "yes" } else { "no" };
        assert_eq!(by_64["acpi"], acpi, "{machine}");
        assert_eq!(by_64["cmdline"], "hello world");
        let bios_data = ["ebda", "base_memory", "equipment"].map(|key| by_64[key].as_str());
        assert_eq!(bios_data, ["0x9fc00", "639", "0x0"], "{machine}");
    }
}

#[test]
fn every_cpu_is_listed_with_acpi_and_without() {
    for machine in MACHINES {
        for cpus in ["1", "2", "64", "200"] {
            let ended = run(payload(machine, "128M").args(["-smp", cpus]), b"", DEADLINE);
            assert_eq!(passed(&ended)["cpus"], cpus, "{machine}");
        }
    }
}

#[test]
fn the_payload_passes_with_memory_of_any_size() {
    for machine in MACHINES {
        for (memory, kib) in
            [("4M", 4 << 10), ("2047M", 2047 << 10), ("2048M", 2048 << 10), ("4G", 4 << 20)]
        {
            let facts = passed(&run(&mut payload(machine, memory), b"", DEADLINE));
            assert_eq!(facts["memory_kib"], (kib - 385).to_string(), "{machine} {memory}");
        }
    }
}

#[test]
fn the_payload_passes_on_machines_with_fewer_and_with_more_devices() {
    for machine in [
        "microvm,x-option-roms=off,pit=off,pic=off,rtc=off",
        "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,rtc=off",
        "microvm,ioapic2=off",
        "microvm,pcie=on",
        "microvm,acpi=off,pcie=on",
    ] {
        passed(&run(&mut payload(machine, "128M"), b"", DEADLINE));
    }
    // Nobody hears the payload here; its status tells.
    let ended = run(&mut payload("microvm,isa-serial=off", "128M"), b"", DEADLINE);
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(33), ""), "{ended}");
}

fn linux(machine: &str, memory: &str, append: &str) -> Ended {
    let mut command = qemu(machine, memory, &kernel(), append);
    command.arg("-initrd").arg(product("initramfs.cpio"));
    run(&mut command, b"", DEADLINE)
}

#[test]
fn debian_reaches_init_with_acpi_and_without() {
    let hash = std::fs::read_to_string(product("initramfs.hash")).unwrap();
    for machine in MACHINES {
        // Without `reboot=t` a kernel without ACPI looks long for a way to restart, and ends at the
        // BIOS's reset vector.
        for (memory, append) in [("128M", "console=ttyS0"), ("3G", "console=ttyS0 reboot=t")] {
            let ended = linux(machine, memory, append);
            let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no init: {ended}"));
            assert_eq!(facts["init"], "1", "{ended}");
            // Power-off with ACPI, a restart without: both end QEMU.
            assert_eq!(ended.status, Some(0), "{ended}");
            assert_eq!(facts["initrd_hash"], hash.trim(), "{ended}");
            let acpi = if machine == "microvm" { "yes" } else { "no" };
            assert_eq!(facts["acpi"], acpi, "{ended}");
        }
    }
}

#[test]
fn debian_reaches_init_on_machines_with_fewer_and_with_more_devices() {
    // Nothing tells Linux here how fast its clock runs: QEMU's counts the guest's nanoseconds.
    let clock = "tsc_early_khz=1000000";
    for (machine, append) in [
        ("microvm,x-option-roms=off,pit=off,pic=off,rtc=off", clock),
        // With neither ACPI nor a PIC Linux gives the serial port no interrupt, with any BIOS.
        ("microvm,acpi=off,x-option-roms=off,pit=off,rtc=off", clock),
        ("microvm,ioapic2=off", ""),
        ("microvm,pcie=on", ""),
        ("microvm,acpi=off,pcie=on", ""),
    ] {
        let ended = linux(machine, "128M", &format!("console=ttyS0 quiet reboot=t {append}"));
        let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no init: {ended}"));
        assert_eq!(ended.status, Some(0), "{ended}");
        let acpi = if machine.contains("acpi=off") { "no" } else { "yes" };
        assert_eq!(facts["acpi"], acpi, "{ended}");
        // Without ACPI nothing says where the configuration space is.
        assert_eq!(facts["pci"].is_empty(), machine != "microvm,pcie=on", "{ended}");
    }
    // Nobody hears init here, but it powers off; otherwise the kernel stops for good.
    let ended = linux("microvm,isa-serial=off", "128M", "quiet");
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(0), ""), "{ended}");
}

#[test]
fn a_kernel_that_does_not_fit_is_told_what_it_needs() {
    for machine in MACHINES {
        let ended = linux(machine, "64M", "console=ttyS0");
        let line = ended.stdout.trim();
        assert!(line.starts_with("bios-microvm: error 44: the kernel needs "), "{ended}");
        assert!(line.ends_with("MiB of memory; there are 64"), "{ended}");
        assert_eq!(ended.status, Some(44 * 2 + 1), "{ended}");
    }
}

/// QEMU without a kernel, and with a way to be told so.
fn without_kernel(told: &[&str]) -> Ended {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "microvm", "-accel", "tcg", "-nodefaults", "-no-user-config"]);
    command.args(["-nographic", "-no-reboot"]).args(told);
    command.arg("-bios").arg(product("bios-microvm.bin"));
    run(&mut command, b"", DEADLINE)
}

const NO_KERNEL: &str = "bios-microvm: error 40: no kernel: start the VMM with -kernel FILE";

#[test]
fn a_failure_is_told_on_com1_and_on_the_debug_console() {
    let debug_exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
    let com1 = without_kernel(&[&["-serial", "stdio"][..], &debug_exit].concat());
    let debug_console =
        ["-chardev", "stdio,id=c", "-device", "isa-debugcon,iobase=0x402,chardev=c"];
    let debug_console = without_kernel(&[&debug_console[..], &debug_exit].concat());
    for ended in [com1, debug_console] {
        assert_eq!(ended.stdout.trim(), NO_KERNEL, "{ended}");
        assert_eq!(ended.status, Some(40 * 2 + 1), "{ended}");
    }
}

#[test]
fn a_failure_without_a_debug_exit_is_told_to_pvpanic() {
    // QEMU's answer to the panic is to end; without it, the firmware halts and this times out.
    let ended =
        without_kernel(&["-serial", "stdio", "-device", "pvpanic", "-action", "panic=shutdown"]);
    assert_eq!(ended.stdout.trim(), NO_KERNEL, "{ended}");
    assert!(!ended.timed_out, "{ended}");
}

/// An ELF file of 32 bits that halts, with a header by which QEMU knows it for a multiboot kernel
/// (Multiboot Specification 0.6.96, 3.1.1).
fn multiboot_kernel() -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    const HEADER: u32 = 0x60;
    const MAGIC: u32 = 0x1bad_b002;
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>();
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for the 80386, entered behind the header; one segment, the whole file.
    file.extend(words(&[3 << 16 | 2, 1, LOAD + HEADER + 12, 52, 0, 0]));
    file.extend(words(&[32 << 16 | 52, 40 << 16 | 1, 0]));
    file.extend(words(&[1, 0, LOAD, LOAD, 0x70, 0x70, 5, 0x1000]));
    file.resize(HEADER as usize, 0);
    file.extend(words(&[MAGIC, 0, 0u32.wrapping_sub(MAGIC)]));
    // hlt; jmp to it
    file.extend([0xf4, 0xeb, 0xfd, 0]);
    file
}

#[test]
fn a_multiboot_kernel_is_refused_by_its_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), multiboot_kernel()).unwrap();
    for machine in MACHINES {
        let ended = run(&mut qemu(machine, "128M", file.path(), "x"), b"", DEADLINE);
        let line = "bios-microvm: error 50: multiboot kernels are not known, only bzImages and PVH";
        assert_eq!(ended.stdout.trim(), line, "{ended}");
        assert_eq!(ended.status, Some(50 * 2 + 1), "{ended}");
    }
}
