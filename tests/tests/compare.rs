//! For the same options, our VMM offers its guest what QEMU's microvm offers.
//!
//! The payload, started by our BIOS under both, dumps fw_cfg and the ACPI tables and says what it
//! was told as a kernel. Our VMM runs on /dev/kvm, QEMU emulates.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use regression::facts;
use regression::machine::{Boot, microvm_with, qemu_with};
use regression::offer::{self, Difference, Has, Offer};
use regression::products::product;
use regression::program::run;

/// A hundred times what a machine of these takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// QEMU's microvm as it comes, and with only what our VMM has too.
const FULL: &str = "microvm";
const LEAN: &str = "microvm,pit=off,pic=off,rtc=off,ioapic2=off,x-option-roms=off";

/// The options of one machine.
#[derive(Debug)]
struct Row {
    machine: &'static str,
    memory: &'static str,
    cpus: &'static str,
    kernel: &'static str,
    append: Option<&'static str>,
    initrd: bool,
}

const BZIMAGE: &str = "payload.bzImage";
const ELF: &str = "payload.elf";
const APPEND: Option<&str> = Some("dump console=ttyS0 x=1,2");

const ROWS: [Row; 11] = [
    row(FULL, "128M", "1", BZIMAGE, APPEND, false),
    row(FULL, "5G", "4", ELF, APPEND, true),
    row(LEAN, "128M", "4", BZIMAGE, None, true),
    row(LEAN, "3072M", "1", BZIMAGE, APPEND, true),
    row(LEAN, "5G", "4", BZIMAGE, None, false),
    row(LEAN, "128M", "1", ELF, APPEND, true),
    row(LEAN, "3072M", "4", ELF, None, true),
    row(LEAN, "5G", "1", ELF, None, false),
    row("microvm,kernel-irqchip=split", "128M", "4", BZIMAGE, APPEND, false),
    row("microvm,acpi=off", "128M", "4", BZIMAGE, APPEND, true),
    row("microvm,acpi=off,x-option-roms=off", "5G", "1", ELF, None, false),
];

const fn row(
    machine: &'static str,
    memory: &'static str,
    cpus: &'static str,
    kernel: &'static str,
    append: Option<&'static str>,
    initrd: bool,
) -> Row {
    Row { machine, memory, cpus, kernel, append, initrd }
}

const fn only_ours(item: &'static str, reason: &'static str) -> Difference {
    Difference { item, has: Has::First, reason }
}

const fn only_qemu_s(item: &'static str, reason: &'static str) -> Difference {
    Difference { item, has: Has::Second, reason }
}

const fn both(item: &'static str, reason: &'static str) -> Difference {
    Difference { item, has: Has::Both, reason }
}

/// Where the two differ, and why. docs/microvm.md has the list for users.
const DIFFERENCES: [Difference; 22] = [
    // fw_cfg.
    only_ours("fw_cfg: etc/microvm/prefetch", "saves our BIOS exits; no other looks for it"),
    only_qemu_s("fw_cfg: etc/fdt", "for firmware without ACPI; x86 kernels are not given it"),
    only_qemu_s("fw_cfg: genroms/*", "an option ROM that boots -kernel; our BIOS does so itself"),
    both("fw_cfg: bootorder", "names the option ROM"),
    both(
        "fw_cfg: SETUP_DATA of an ELF",
        "QEMU gives what is on its stack by then, each time other",
    ),
    both("fw_cfg: SETUP_DATA.heap_end_ptr", "ours leaves room for a stack that starts at 0xfff0"),
    only_ours(
        "fw_cfg: etc/e820 0xfeffc000+0x4000:2",
        "KVM's own pages: QEMU reserves them under KVM too, but here it emulates",
    ),
    only_ours("kernel: e820 0xfeffc000+0x4000:2", "KVM's own pages, likewise"),
    // The tables as bytes, which are compared by what they say.
    both("fw_cfg: etc/acpi/rsdp", "compared by meaning"),
    both("fw_cfg: etc/acpi/tables", "compared by meaning"),
    both("fw_cfg: etc/table-loader", "places other tables in another order"),
    both("kernel: rsdp", "follows from that order"),
    // What the tables say.
    both("ACPI: makers", "ours are not QEMU's"),
    both("ACPI: FACP revision", "6.5 and 5.0; all that is newer is zero"),
    both("ACPI: FACP minor revision", "likewise"),
    both(
        "ACPI: FACP boot flags",
        "ours say that there is no VGA and no CMOS clock; QEMU's nothing",
    ),
    both("ACPI: APIC PCAT_COMPAT", "there is no PIC with pic=off; QEMU says that there is"),
    only_qemu_s("ACPI: APIC I/O APIC 1", "for 24 virtio devices; here are slots for 8"),
    only_qemu_s("ACPI: DSDT _SB_ PNP0B00 *", "there is no CMOS clock; QEMU has none under KVM"),
    both(
        "ACPI: DSDT _SB_ LNRO0005/*",
        "an edge, not a level: the driver asks what it was, and an edge has no exit at its end",
    ),
    // Our BIOS knows the time where the hypervisor says how fast its clock counts.
    only_ours("ACPI: FPDT", "our BIOS makes it; QEMU's emulator has no clock for it"),
    both("kernel: firmware_times", "likewise"),
];

fn command(mut command: Command, row: &Row, initrd: &tempfile::NamedTempFile) -> Command {
    // Not reserved, so that a small host can have it.
    let ram = format!("memory-backend-ram,id=ram,size={},reserve=off", row.memory);
    command.args(["-object", &ram, "-smp", row.cpus, "-device", "pvpanic"]);
    command.args(["-fw_cfg", "name=opt/org.example/x,string=some text"]);
    // With a second I/O APIC, QEMU has other slots, for more devices.
    if row.machine.contains("ioapic2=off") || row.machine.contains("acpi=off") {
        command.args(["-device", "virtio-rng-device", "-device", "virtio-rng-device"]);
    }
    command.arg("-kernel").arg(product(row.kernel));
    match row.append {
        Some(text) => command.args(["-append", text]),
        // Without a command line, this is what tells the payload to dump.
        None => command.args(["-fw_cfg", "name=opt/org.example/dump,string=1"]),
    };
    if row.initrd {
        command.arg("-initrd").arg(initrd.path());
    }
    command
}

fn offered(mut command: Command) -> Offer {
    let ended = run(&mut command, b"", DEADLINE);
    assert_eq!(ended.status, Some(33), "{ended}");
    let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"));
    offer::read(&facts).unwrap_or_else(|error| panic!("{error:#}: {ended}"))
}

#[test]
fn our_vmm_offers_what_qemu_s_microvm_offers_save_for_named_differences() {
    let initrd = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(initrd.path(), (0..5_555u32).map(|i| i.to_le_bytes()[0]).collect::<Vec<_>>())
        .unwrap();
    let mut findings = Vec::new();
    let mut met = BTreeSet::new();
    for row in &ROWS {
        let machine = format!("{},memory-backend=ram", row.machine);
        let ours = microvm_with(&machine, Boot::Firmware, row.memory);
        let ours = offered(command(ours, row, &initrd));
        let theirs = offered(command(qemu_with(&machine, row.memory), row, &initrd));
        let (unknown, known) = offer::compare(&ours, &theirs, &DIFFERENCES);
        if !unknown.is_empty() {
            findings.push(format!("{row:?}, ours, then QEMU's:\n  {}", unknown.join("\n  ")));
        }
        met.extend(known);
    }
    let not_met = (0..DIFFERENCES.len()).filter(|index| !met.contains(index));
    findings
        .extend(not_met.map(|index| format!("no difference any more: {:?}", DIFFERENCES[index])));
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
