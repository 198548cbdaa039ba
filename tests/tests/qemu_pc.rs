//! Our BIOS under QEMU's pc and q35: the same image, with chipset, PCI and SMBIOS.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use regression::disk::{PCI_DISK, initramfs_with_modules, root_disk};
use regression::facts::{self, Facts, differences};
use regression::machine::qemu;
use regression::products::{kernel, product};
use regression::program::{Ended, run, run_until_mark};

/// Ten times what a loaded machine takes.
const DEADLINE: Duration = Duration::from_secs(200);
const MACHINES: [&str; 2] = ["pc", "q35"];

fn payload(machine: &str, memory: &str, append: &str) -> Command {
    let mut command = qemu(machine, memory, &product("payload.bzImage"), append);
    command.arg("-initrd").arg(product("initramfs.cpio"));
    command
}

fn passed(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(33), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

#[test]
fn the_payload_passes_by_every_entry() {
    for machine in MACHINES {
        let [by_64, by_32, by_16] = ["64", "32", "16"].map(|entry| {
            let choice = format!("name=opt/org.microvm/entry,string={entry}");
            let mut command = payload(machine, "128M", "hello world");
            passed(&run(command.args(["-smp", "3", "-fw_cfg", &choice]), b"", DEADLINE))
        });
        assert_eq!(differences(&by_64, &by_32, &["entry"]), [""; 0], "{machine}");
        let real_mode = ["entry", "zero_page", "real_mode", "bios_memory"];
        assert_eq!(differences(&by_64, &by_16, &real_mode), [""; 0], "{machine}");
        let fact = |key: &str| by_64[key].as_str();
        assert_eq!((fact("acpi"), fact("acpi_checksums"), fact("cpus")), ("yes", "ok", "3"));
        assert!(fact("acpi_tables").contains("DSDT+"), "{by_64:?}");
        let mmconfig = fact("e820").contains("0xb0000000+0x10000000:2");
        assert_eq!(mmconfig, machine == "q35", "{by_64:?}");
    }
}

#[test]
fn the_payload_passes_with_memory_of_any_size_and_without_acpi() {
    for machine in ["pc", "q35", "pc,acpi=off", "q35,acpi=off"] {
        for (memory, kib) in [("16M", 16 << 10), ("2047M", 2047 << 10), ("5G", 5 << 20)] {
            let facts = passed(&run(&mut payload(machine, memory, ""), b"", DEADLINE));
            let seen: u64 = facts["memory_kib"].parse().unwrap();
            // Less the 385 KiB below 1 MiB, and with ACPI the 128 KiB of tables.
            let tables = if machine.contains("off") { 0 } else { 128 };
            assert_eq!(seen, kib - 385 - tables, "{machine} {memory}");
        }
    }
}

/// The image in RAM stays what it is when the chipset resets; the firmware must start again all the
/// same.
#[test]
fn a_reset_starts_the_firmware_again() {
    for machine in MACHINES {
        for how in ["i8042", "triple-fault"] {
            let append = format!("leave={how}");
            let command = payload(machine, "64M", &append);
            let mut again = Command::new(command.get_program());
            again.args(command.get_args().filter(|argument| *argument != "-no-reboot"));
            let ended = run_until_mark(&mut again, "guest-facts-end", 3, DEADLINE);
            let starts: Vec<_> = ended.stdout.split("guest-facts-begin").skip(1).collect();
            assert!(starts.len() >= 3, "{how}: {ended}");
            let facts = |start: &str| facts::parse(&format!("guest-facts-begin{start}"));
            assert_eq!(facts(starts[0]), facts(starts[2]), "{how}: the third start is the first");
        }
    }
}

fn linux(machine: &str, devices: &[&str]) -> Facts {
    let mut command = qemu(machine, "256M", &kernel(), "console=ttyS0");
    command.arg("-initrd").arg(product("initramfs.cpio"));
    for device in devices {
        command.args(["-device", device]);
    }
    reached_init(&run(&mut command, b"", DEADLINE))
}

fn reached_init(ended: &Ended) -> Facts {
    let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no init: {ended}"));
    assert_eq!(ended.status, Some(0), "power-off by ACPI: {ended}");
    assert_eq!((facts["init"].as_str(), facts["acpi"].as_str()), ("1", "yes"), "{ended}");
    facts
}

/// The starts of the address ranges of the function with this id.
fn ranges<'a>(facts: &'a Facts, id: &str) -> Vec<&'a str> {
    let function = facts["pci"].split(',').find(|function| function.contains(id));
    let function = function.unwrap_or_else(|| panic!("no {id}: {}", facts["pci"]));
    function.split(' ').skip(2).collect()
}

#[test]
fn debian_reaches_init_and_finds_its_machine() {
    let hash = std::fs::read_to_string(product("initramfs.hash")).unwrap();
    for machine in MACHINES {
        let facts = linux(machine, &[]);
        assert_eq!(facts["initrd_hash"], hash.trim());
        assert_eq!(facts["smbios"], "microvm", "{facts:?}");
        assert_eq!(facts["root"], "rootfs");
    }
}

#[test]
fn devices_have_their_addresses_on_bus_0_and_behind_bridges() {
    let facts = linux(
        "pc",
        &[
            "pci-bridge,id=bridge,chassis_nr=1",
            "virtio-rng-pci,bus=bridge,addr=3",
            "virtio-net-pci",
        ],
    );
    // I/O, memory, 64-bit prefetchable memory.
    assert_eq!(ranges(&facts, "1af4:1000"), ["d000", "80204000", "80200000"]);
    assert_eq!(ranges(&facts, "1af4:1005"), ["c000", "80000000", "80100000"]);

    let facts = linux(
        "q35",
        &[
            "pcie-root-port,id=socket,chassis=1",
            "virtio-rng-pci,bus=socket",
            "pcie-root-port,id=spare,chassis=2",
            "virtio-net-pci",
        ],
    );
    assert_eq!(ranges(&facts, "1af4:1000").len(), 3);
    // PCI Express has no I/O of virtio.
    assert_eq!(ranges(&facts, "1af4:1044"), ["c0000000", "c0100000"]);
}

#[test]
fn a_large_window_goes_above_4_gib() {
    for machine in MACHINES {
        let mut command = qemu(machine, "256M", &kernel(), "console=ttyS0");
        command.arg("-initrd").arg(product("initramfs.cpio"));
        command.args(["-object", "memory-backend-ram,id=shared,size=8G,reserve=off"]);
        command.args(["-device", "ivshmem-plain,memdev=shared", "-cpu", "max"]);
        let facts = reached_init(&run(&mut command, b"", DEADLINE));
        let [_, window] = ranges(&facts, "1af4:1110")[..] else { panic!("{facts:?}") };
        assert_eq!(window, "200000000", "aligned to its size");
    }
}

/// qboot stops without a word here, because it does not know one of the script's commands.
#[test]
fn a_vm_generation_id_is_written_back() {
    for machine in MACHINES {
        let facts = linux(machine, &["vmgenid,guid=auto"]);
        assert!(facts["acpi_tables"].contains("SSDT"), "{facts:?}");
    }
}

#[test]
fn debian_boots_from_a_virtio_disk_on_pci() {
    let folder = tempfile::tempdir().unwrap();
    let disk = root_disk(folder.path());
    let initramfs = initramfs_with_modules(folder.path(), &PCI_DISK);
    for (machine, place) in [("pc", ""), ("q35", ""), ("q35", ",bus=socket")] {
        let append = "console=ttyS0 guest.root=/dev/vda";
        let mut command = qemu(machine, "256M", &kernel(), append);
        command.arg("-initrd").arg(&initramfs).arg("-drive").arg(drive(&disk));
        if !place.is_empty() {
            command.args(["-device", "pcie-root-port,id=socket,chassis=1"]);
        }
        command.args(["-device", &format!("virtio-blk-pci,drive=root{place}")]);
        let facts = reached_init(&run(&mut command, b"", DEADLINE));
        assert_eq!(facts["root"], "ext4", "{machine}{place}");
    }
}

fn drive(disk: &Path) -> String {
    format!("if=none,id=root,format=raw,snapshot=on,file={}", disk.display())
}
