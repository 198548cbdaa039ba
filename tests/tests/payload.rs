//! Firmware and direct boot with the payload kernel: small enough for any /dev/kvm.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use regression::facts::{self, Facts, differences};
use regression::machine::{Boot, microvm};
use regression::products::product;
use regression::program::{Ended, run, run_dialogue, run_until_mark};

/// Far above the fraction of a second that the payload takes where /dev/kvm interprets it.
const DEADLINE: Duration = Duration::from_secs(60);
/// What the payload leaves by isa-debug-exit when all its checks passed.
const PASSED: i32 = 33;

fn payload() -> PathBuf {
    product("payload.bzImage")
}

fn passed(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(PASSED), "{ended}");
    facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no facts: {ended}"))
}

/// A file of `size` bytes that differ from their neighbours, and its hash.
fn initrd(size: usize) -> (tempfile::NamedTempFile, String) {
    use std::hash::Hasher;
    let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251).to_le_bytes()[0]).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(&bytes);
    (file, format!("{:016x}", hasher.finish()))
}

fn with_initrd(mut command: Command, initrd: &tempfile::NamedTempFile) -> Command {
    command.arg("-initrd").arg(initrd.path());
    command
}

#[test]
fn every_path_enters_as_the_protocol_says_and_tells_the_same() {
    let (initrd, hash) = initrd(5_555);
    let runs = Boot::ALL.map(|boot| {
        let command = microvm(boot, "128M", &payload(), "hello world x=1,2");
        passed(&run(&mut with_initrd(command, &initrd), b"", DEADLINE))
    });
    for facts in &runs {
        assert_eq!(facts["entry_state"], "ok");
        assert_eq!(facts["cmdline"], "hello world x=1,2");
        assert_eq!(facts["initrd_hash"], hash);
        assert_eq!(facts["acpi_checksums"], "ok");
        assert_eq!(facts["cpus"], "1");
        assert_eq!(facts["sentinel"], "0");
    }
    let [firmware, firmware_32, firmware_16, direct] = runs;
    // Firmware and direct boot: nothing may differ but what only a firmware has to tell.
    assert_eq!(differences(&firmware, &direct, &["firmware_times"]), [""; 0]);
    assert_eq!(firmware["firmware_times"], "ok");
    // The entry is what the test chose.
    assert_eq!(differences(&firmware, &firmware_32, &["entry"]), [""; 0]);
    // Setup code makes a zero page of its own, and finds the RSDP by itself.
    let real_mode = ["entry", "zero_page", "real_mode", "bios_memory"];
    assert_eq!(differences(&firmware, &firmware_16, &real_mode), [""; 0]);
    assert_eq!(firmware_16["real_mode"], "ok");
    let entries = [&firmware, &firmware_32, &firmware_16].map(|facts| facts["entry"].as_str());
    assert_eq!(entries, ["64", "32", "16"]);
}

#[test]
fn memory_of_any_size_is_all_there_on_both_paths() {
    for (memory, kib) in [
        ("2M", 2 << 10),
        ("64", 64 << 10),
        ("2047M", 2047 << 10),
        ("2048M", 2048 << 10),
        ("size=3G", 3 << 20),
        ("5G", 5 << 20),
    ] {
        let [firmware, direct] = [Boot::Firmware, Boot::Direct].map(|boot| {
            let command = microvm(boot, memory, &payload(), "");
            passed(&run(&mut { command }, b"", DEADLINE))
        });
        assert_eq!(differences(&firmware, &direct, &["firmware_times"]), [""; 0], "{memory}");
        // Less the EBDA's KiB and the 384 KiB below 1 MiB that are no RAM to a kernel.
        assert_eq!(firmware["memory_kib"], (kib - 385).to_string(), "{memory}");
    }
}

/// QEMU's microvm with SeaBIOS overwrites its ACPI tables at 2048 MiB when the initrd's size is
/// no multiple of a page.
#[test]
fn an_initrd_of_odd_size_at_2048_mib_spares_the_acpi_tables() {
    // It ends with the last byte of RAM, if it is put as high as its pages can be.
    let (initrd, hash) = initrd(10 * 4096 - 1);
    for boot in Boot::ALL {
        let command = microvm(boot, "2048M", &payload(), "");
        let facts = passed(&run(&mut with_initrd(command, &initrd), b"", DEADLINE));
        assert_eq!((&facts["initrd_hash"], facts["acpi_checksums"].as_str()), (&hash, "ok"));
    }
}

/// The payload with bytes of its header replaced.
fn patched(at: usize, bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut image = std::fs::read(payload()).unwrap();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    file
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_in_32_bit_mode() {
    // Relocatable, and no flag of a 64-bit entry.
    let kernel = patched(0x234, &[1, 12, 0, 0]);
    let command = &mut microvm(Boot::Firmware, "128M", kernel.path(), "");
    assert_eq!(passed(&run(command, b"", DEADLINE))["entry"], "32");
}

#[test]
fn what_the_firmware_refuses_it_says_in_one_numbered_line() {
    let huge = patched(0x260, &0x4000_0000u32.to_le_bytes());
    let entry = |value: &str| {
        let mut command = microvm(Boot::Firmware, "128M", &payload(), "");
        command.args(["-fw_cfg", &format!("name=opt/org.microvm/entry,string={value}")]);
        command
    };
    for (mut command, line) in [
        (entry("8"), "bios-microvm: error 46: opt/org.microvm/entry is none of 16, 32, 64 and pvh"),
        (
            microvm(Boot::Firmware, "128M", huge.path(), ""),
            "bios-microvm: error 44: the kernel needs 1024 MiB at 0x100000, beyond the first GiB",
        ),
    ] {
        let ended = run(&mut command, b"", DEADLINE);
        let lines: Vec<_> = ended.stdout.lines().filter(|l| !l.is_empty()).collect();
        assert_eq!(lines, [line], "{ended}");
        assert!(!ended.timed_out && ended.status != Some(0), "{ended}");
    }
}

#[test]
fn a_reset_ends_the_machine_with_no_reboot_and_restarts_it_without() {
    for boot in [Boot::Firmware, Boot::Direct] {
        for how in ["i8042", "ged-reset", "triple-fault"] {
            let append = format!("leave={how}");
            let ended =
                run(microvm(boot, "64M", &payload(), &append).arg("-no-reboot"), b"", DEADLINE);
            assert_eq!(ended.status, Some(0), "{how}: {ended}");
            assert_eq!(ended.stdout.matches("guest-facts-end").count(), 1, "{how}: {ended}");
            let again = run_until_mark(
                &mut microvm(boot, "64M", &payload(), &append),
                "guest-facts-end",
                3,
                DEADLINE,
            );
            let starts: Vec<_> = again.stdout.split("guest-facts-begin").skip(1).collect();
            assert!(starts.len() >= 3, "{how}: {again}");
            let facts = |start: &str| facts::parse(&format!("guest-facts-begin{start}"));
            assert_eq!(facts(starts[0]), facts(starts[2]), "{how}: the third start is the first");
        }
    }
}

#[test]
fn power_off_ends_the_process_with_status_0() {
    for boot in [Boot::Firmware, Boot::Direct] {
        let ended = run(&mut microvm(boot, "64M", &payload(), "leave=power-off"), b"", DEADLINE);
        assert_eq!(ended.status, Some(0), "{ended}");
    }
}

#[test]
fn console_input_reaches_the_guest_whole() {
    // Longer than a 16550's FIFO.
    let line = "the quick brown fox jumps over the lazy dog, 0123456789".repeat(5);
    let ended = run_dialogue(
        &mut microvm(Boot::Firmware, "64M", &payload(), "echo"),
        "guest-echo-ready",
        format!("{line}\n").as_bytes(),
        DEADLINE,
    );
    assert!(ended.stdout.contains(&format!("echo={line}")), "{ended}");
    assert_eq!(ended.status, Some(PASSED), "{ended}");
}

#[test]
fn the_trace_has_every_stage_in_order() {
    for (boot, stages) in [
        (Boot::Firmware, &["firmware start", "kernel load", "kernel entry"][..]),
        (Boot::Direct, &["kernel entry"]),
    ] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = microvm(boot, "64M", &payload(), "");
        command.arg("-boot-trace").arg(trace.path());
        passed(&run(&mut command, b"", DEADLINE));
        let trace = std::fs::read_to_string(trace.path()).unwrap();
        let at: Vec<_> = stages.iter().map(|stage| trace.find(stage)).collect();
        assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{boot:?}: {trace}");
    }
}

#[test]
fn the_log_tells_the_way_on_the_console_and_only_when_asked() {
    let mut command = microvm(Boot::Firmware, "128M", &payload(), "");
    let ended = run(&mut command, b"", DEADLINE);
    assert!(!ended.stdout.contains("bios-microvm:"), "{ended}");
    let ended =
        run(command.args(["-fw_cfg", "name=opt/org.microvm/verbose,string=on"]), b"", DEADLINE);
    passed(&ended);
    for part in ["fw_cfg by DMA", "memory 0x100000 to 0x8000000: RAM", "kernel at ", "64-bit entry"]
    {
        assert!(ended.stdout.contains(part), "no {part:?}: {ended}");
    }
}

#[test]
fn the_boot_trace_has_the_firmware_s_own_stamps() {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = microvm(Boot::Firmware, "128M", &payload(), "");
    passed(&run(command.arg("-boot-trace").arg(trace.path()), b"", DEADLINE));
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(trace.path()).unwrap()).unwrap();
    let stamps = &json["boots"][0]["firmware"];
    let [start, load, entry] =
        ["start", "load_kernel", "kernel_entry"].map(|stage| stamps[stage].as_u64().unwrap());
    assert!(start < load && load < entry, "{stamps}");
    assert!(stamps["khz"].as_u64().unwrap() > 0, "{stamps}");
}

/// Without a device, they are no memory of the guest's: whoever looks asks the VMM.
#[test]
fn without_devices_all_virtio_slots_are_empty() {
    for boot in [Boot::Firmware, Boot::Direct] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = microvm(boot, "64M", &payload(), "slots");
        command.arg("-boot-trace").arg(trace.path());
        let facts = passed(&run(&mut command, b"", DEADLINE));
        assert_eq!(facts["virtio_slots"].trim(), ["2:0"; 8].join(" "));
        let trace: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(trace.path()).unwrap()).unwrap();
        // Magic number, version and device of each.
        assert_eq!(trace["exits"]["mmio_read"]["virtio-mmio"], 3 * 8, "{}", trace["exits"]);
    }
}

/// The first device is in the highest slot, and an empty slot says that it is empty.
#[test]
fn virtio_slots_are_filled_from_the_top() {
    for boot in [Boot::Firmware, Boot::Direct] {
        for machine in ["microvm", "microvm,acpi=off"] {
            let mut command = microvm(boot, "64M", &payload(), "slots");
            command.args(["-M", machine, "-device", "virtio-rng-device,rng=r"]);
            command.args(["-device", "virtio-rng-device", "-object", "rng-builtin,id=r"]);
            let facts = passed(&run(&mut command, b"", DEADLINE));
            assert_eq!(
                facts["virtio_slots"].trim(),
                "2:0 2:0 2:0 2:0 2:0 2:0 2:4 2:4",
                "{machine}"
            );
            let told = "slots virtio_mmio.device=512@0xfeb00e00:12 \
                        virtio_mmio.device=512@0xfeb00c00:11";
            let expected = if machine == "microvm" { "slots" } else { told };
            assert_eq!(facts["cmdline"], expected);
        }
    }
}
