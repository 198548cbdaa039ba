//! An unmodified distribution kernel to its init, by firmware and by direct boot.
//!
//! Needs a /dev/kvm that runs kernel code natively: the host's, or the nested lab's.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use regression::disk::{ENTROPY, initramfs_with_modules};
use regression::facts::{self, Facts, differences};
use regression::machine::{Boot, microvm};
use regression::products::{kernel, product};
use regression::program::{Ended, retried, run, run_dialogue, run_until_mark};

/// Ten times what the slowest ground takes, in the ground's own time.
const DEADLINE: Duration = Duration::from_secs(20);
const APPEND: &str = "console=ttyS0 quiet";

fn linux(boot: Boot, memory: &str, append: &str) -> Command {
    let mut command = microvm(boot, memory, &kernel(), append);
    command.arg("-initrd").arg(product("initramfs.cpio"));
    command
}

fn run_linux(command: impl Fn() -> Command) -> Ended {
    retried(|| run(&mut command(), b"", DEADLINE))
}

fn reached_init(ended: &Ended) -> Facts {
    assert_eq!(ended.status, Some(0), "power-off: {ended}");
    let facts = facts::parse(&ended.stdout).unwrap_or_else(|| panic!("no init: {ended}"));
    assert_eq!(facts["init"], "1");
    facts
}

#[test]
fn debian_reaches_init_on_every_path_and_sees_the_same_machine() {
    let runs = Boot::ALL.map(|boot| reached_init(&run_linux(|| linux(boot, "256M", APPEND))));
    for facts in &runs {
        assert_eq!(facts["cmdline"], APPEND);
        assert_eq!(facts["acpi"], "yes");
        assert_eq!(facts["cpus"], "1");
        assert_eq!(facts["clocksource"], "kvm-clock");
        assert_ne!(facts["serial_irqs"], "0", "the console runs on its interrupt");
    }
    // The serial port's interrupts depend on how output and polling interleave.
    for facts in &runs[1..] {
        let differences = differences(&runs[0], facts, &["serial_irqs", "firmware_times"]);
        assert_eq!(differences, [""; 0]);
    }
    // What `systemd-analyze` shows: nanoseconds on the virtual machine's own clock.
    let [firmware @ .., direct] = &runs;
    assert_eq!(direct["firmware_times"], "", "there is no firmware");
    for facts in firmware {
        let times = facts["firmware_times"].split_once(' ').unwrap_or_else(|| panic!("{facts:?}"));
        let [start, end]: [u64; 2] = [times.0, times.1].map(|time| time.parse().unwrap());
        assert!(0 < start && start < end && end < 1_000_000_000, "{facts:?}");
    }
}

/// Whose log is not quiet: what Linux thinks of its CPU.
fn linux_on_cpu(cpu: &str) -> (Ended, Vec<String>) {
    let ended = run_linux(|| {
        let mut command = linux(Boot::Direct, "256M", "console=ttyS0");
        command.args(["-cpu", cpu]);
        command
    });
    let flags = reached_init(&ended)["cpu_flags"].split(' ').map(str::to_owned).collect();
    (ended, flags)
}

#[test]
fn linux_has_the_features_that_were_asked_for_and_complains_of_nothing() {
    let taken = ["x2apic", "aes", "sse4_2", "pdpe1gb", "tsc_adjust"];
    let (with, flags) = linux_on_cpu("host");
    for name in taken {
        assert!(flags.iter().any(|flag| flag == name), "{name}: {with}");
    }
    let (without, flags) =
        linux_on_cpu("host,-x2apic,-aes,-sse4_2,pdpe1gb=off,tsc_adjust=off,-avx");
    for name in taken.into_iter().chain(["avx", "avx2", "fma"]) {
        assert!(!flags.iter().any(|flag| flag == name), "{name}: {without}");
    }
    assert!(without.stdout.contains("Enabled xstate features 0x3, "), "{without}");
    for ended in [with, without] {
        assert!(ended.stdout.contains("tsc: Detected "), "{ended}");
        for complaint in ["[Firmware Bug]", "calibration", "Unable to calibrate"] {
            assert!(!ended.stdout.contains(complaint), "{ended}");
        }
    }
}

#[test]
fn the_initrd_arrives_unchanged() {
    let expected = std::fs::read_to_string(product("initramfs.hash")).unwrap();
    let facts = reached_init(&run_linux(|| linux(Boot::Firmware, "128M", APPEND)));
    assert_eq!(facts["initrd_hash"], expected.trim());
}

#[test]
fn input_reaches_init_through_the_serial_interrupt() {
    let ended = run_dialogue(
        &mut linux(Boot::Firmware, "128M", "console=ttyS0 quiet guest.echo"),
        "guest-echo-ready",
        b"typed at the console\n",
        DEADLINE,
    );
    reached_init(&ended);
    assert!(ended.stdout.contains("echo=typed at the console"), "{ended}");
}

#[test]
fn a_guest_reboot_restarts_linux_and_no_reboot_ends_it() {
    let append = "console=ttyS0 quiet guest.exit=reboot";
    let ended = run_linux(|| {
        let mut command = linux(Boot::Firmware, "128M", append);
        command.arg("-no-reboot");
        command
    });
    reached_init(&ended);
    for boot in [Boot::Firmware, Boot::Direct] {
        let mut command = linux(boot, "128M", append);
        let again = run_until_mark(&mut command, "guest-facts-end", 2, DEADLINE);
        assert_eq!(again.stdout.matches("init=1").count(), 2, "{boot:?}: {again}");
    }
}

/// The command line of the 2020 article, with only the path of the kernel replaced.
#[test]
fn the_article_s_command_line_works_as_written() {
    let script = format!(
        r#"exec "$MICROVM" -M microvm -bios bios-microvm.bin -kernel "{}" \
           -append "earlyprintk=ttyS0 console=ttyS0,115200,8n1" \
           -enable-kvm -cpu host -m 1G -smp 1 \
           -nodefaults -no-user-config -nographic -serial mon:stdio"#,
        kernel().display()
    );
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script]).env("MICROVM", product("microvm"));
    command.current_dir(product("bios-microvm.bin").parent().unwrap_or(Path::new("/")));
    // Without an initrd this kernel stops for want of a root file system. Ctrl-A X quits.
    let ended = run_dialogue(&mut command, "Unable to mount root fs", b"\x01x", DEADLINE);
    assert!(ended.stdout.contains("Linux version"), "{ended}");
    assert_eq!(ended.status, Some(0), "{ended}");
}

/// The driver finds its device by ACPI, takes it, and what it reads is random.
#[test]
fn linux_reads_the_host_s_entropy() {
    let folder = tempfile::tempdir().unwrap();
    let initramfs = initramfs_with_modules(folder.path(), &ENTROPY);
    let read = |boot: Boot| {
        let ended = run_linux(|| {
            let mut command = microvm(boot, "256M", &kernel(), "console=ttyS0 guest.entropy");
            command.arg("-initrd").arg(&initramfs).args(["-device", "virtio-rng-device"]);
            command
        });
        assert_eq!(ended.status, Some(0), "{ended}");
        let line = ended.stdout.lines().find_map(|line| line.strip_prefix("entropy=virtio_rng.0 "));
        line.unwrap_or_else(|| panic!("no entropy: {ended}")).trim().to_owned()
    };
    let [first, second] = [Boot::Firmware, Boot::Direct].map(read);
    assert_eq!((first.len(), second.len()), (64, 64));
    assert_ne!(first, second);
    assert_ne!(first, "0".repeat(64));
}

/// Each stage from the process's start to init, seen from outside: the kernel knows of no trace.
#[test]
fn a_trace_tells_the_stages_of_linux_and_what_it_cost() {
    let stages = ["kernel entry", "kernel start", "kvm clock", "first console byte", "guest init"];
    for boot in [Boot::Firmware, Boot::Direct] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let ended = run_linux(|| {
            let mut command = linux(boot, "256M", "console=ttyS0");
            command.arg("-boot-trace").arg(file.path());
            command
        });
        reached_init(&ended);
        let text = std::fs::read_to_string(file.path()).unwrap();
        let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
        let first = &trace["boots"][0];
        let marks = first["marks"].as_array().unwrap();
        let names: Vec<_> = marks.iter().filter_map(|mark| mark["name"].as_str()).collect();
        assert!(names.ends_with(&stages), "{names:?}");
        let times = |list: &[serde_json::Value], field: &str| -> Vec<u64> {
            list.iter().map(|entry| entry[field].as_u64().unwrap()).collect()
        };
        let setup = first["setup"].as_array().unwrap();
        let all = [times(setup, "end_ns"), times(marks, "ns")].concat();
        assert!(all.is_sorted() && setup.len() > 5, "{first}");
        assert!(times(marks, "exits").is_sorted(), "{first}");
        // As a picture: exec, each step, the threads' start and the end in one row, each stage in
        // the next, and what goes on meanwhile; the firmware's own stages by its own clock.
        let events = trace["traceEvents"].as_array().unwrap();
        let bars = |row: u32| {
            let bar = |event: &&serde_json::Value| event["ph"] == "X" && event["tid"] == row;
            events.iter().filter(bar).count()
        };
        let of_firmware = if boot == Boot::Firmware { 2 } else { 0 };
        assert_eq!([1, 2, 3, 4].map(bars), [setup.len() + 3, marks.len(), 2, of_firmware]);
        let [start, end, cost] =
            [&trace["start_ns"], &trace["exit"]["ns"], &trace["trace_cost_ns"]]
                .map(|number| number.as_u64().unwrap());
        assert!(cost > 0 && cost * 100 < end - start, "{cost} of {} ns", end - start);
    }
}

/// Measured, not estimated: the same start with a trace and without one, in turns.
#[test]
fn a_trace_costs_less_than_a_hundredth_of_a_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let start = |traced: bool| {
        let mut command = linux(Boot::Direct, "256M", "console=ttyS0 quiet");
        if traced {
            command.arg("-boot-trace").arg(file.path());
        }
        let begun = Instant::now();
        reached_init(&run(&mut command, b"", DEADLINE));
        begun.elapsed()
    };
    // The first one finds nothing in the host's caches.
    start(false);
    let rounds = [(); 2].map(|()| [false, true].map(start));
    let [without, with] =
        [0, 1].map(|which| rounds.iter().map(|round| round[which]).min().unwrap());
    println!("a start with a trace: {with:?}, without: {without:?}");
    assert!(with.as_secs_f64() < without.as_secs_f64() * 1.01, "{rounds:?}");
}

#[test]
fn linux_starts_from_the_kernel_cache() {
    let cache = tempfile::tempdir().unwrap();
    let start = |boot| {
        let command = || {
            let mut command = linux(boot, "256M", APPEND);
            command.args(["-M", "kernel-cache=on"]).env("XDG_CACHE_HOME", cache.path());
            command
        };
        let ended = run(&mut command(), b"", DEADLINE);
        assert_eq!(reached_init(&ended)["cmdline"], APPEND);
        ended.stderr.contains("kernel-cache: unpacked")
    };
    assert!(start(Boot::Direct), "the first time, it is unpacked");
    assert!(!start(Boot::Direct) && !start(Boot::Firmware), "and never again");
}
