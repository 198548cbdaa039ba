//! How a machine's life ends, and what is said of it.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use regression::machine::{Boot, microvm};
use regression::products::{kernel, product};
use regression::program::{Ended, run, run_until_mark};

/// Far above the fraction of a second that the payload takes where /dev/kvm interprets it.
const DEADLINE: Duration = Duration::from_secs(60);
const BOTH: [Boot; 2] = [Boot::Firmware, Boot::Direct];

fn payload(boot: Boot, leave: &str) -> Command {
    microvm(boot, "64M", &product("payload.bzImage"), &format!("leave={leave}"))
}

fn ended(boot: Boot, leave: &str, more: &[&str]) -> Ended {
    run(payload(boot, leave).args(more), b"", DEADLINE)
}

#[test]
fn power_off_is_status_0_whatever_follows_resets() {
    for boot in BOTH {
        for more in [&[][..], &["-no-reboot"], &["-action", "reboot=shutdown,shutdown=poweroff"]] {
            let ended = ended(boot, "power-off", more);
            assert_eq!((ended.status, ended.stderr.as_str()), (Some(0), ""), "{ended}");
        }
    }
}

#[test]
fn a_panic_is_seen_in_the_status() {
    for boot in BOTH {
        let device = ["-device", "pvpanic"];
        let failed = ended(boot, "panic", &device);
        assert_eq!(failed.status, Some(1), "{failed}");
        assert!(failed.stderr.contains("the guest panicked"), "{failed}");
        let quiet = ended(boot, "panic", &[&device[..], &["-action", "panic=shutdown"]].concat());
        assert_eq!((quiet.status, quiet.stderr.as_str()), (Some(0), ""), "{quiet}");
    }
}

/// A machine whose guest waits for the power button.
struct Waiting(Child);

impl Waiting {
    fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut machine = Self(child);
        machine.read_facts();
        machine
    }

    /// Reads to the end of the guest's facts; what comes later is little.
    fn read_facts(&mut self) {
        let mut seen = String::new();
        let stdout = self.0.stdout.as_mut().unwrap();
        while !seen.contains("guest-facts-end") {
            let mut bytes = [0; 256];
            let count = stdout.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "the machine ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    /// Numbers of the descriptors that are virtual machines.
    fn descriptors(&self) -> Vec<OsString> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().map(Result::unwrap);
        let is_machine = |file: &fs::DirEntry| {
            fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:kvm-vm")
        };
        files.filter(is_machine).map(|file| file.file_name()).collect()
    }

    fn terminate(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    fn wait(mut self) -> (std::process::ExitStatus, String) {
        let status = self.0.wait().unwrap();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

#[test]
fn sigterm_presses_the_power_button() {
    for boot in BOTH {
        let machine = Waiting::start(&mut payload(boot, "power-button"));
        machine.terminate();
        let (status, said) = machine.wait();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(said.contains("the power button is pressed"), "{said}");
    }
}

#[test]
fn a_second_sigterm_ends_it_and_without_a_button_the_first_does() {
    use std::os::unix::process::ExitStatusExt;
    let mut deaf = Waiting::start(&mut payload(Boot::Direct, "halt"));
    deaf.terminate();
    // The second must not come before the first was taken, or both are one.
    let mut said = [0; 64];
    assert_ne!(deaf.0.stderr.as_mut().unwrap().read(&mut said).unwrap(), 0);
    deaf.terminate();
    assert_eq!(deaf.wait().0.signal(), Some(15));
    let bare = Waiting::start(payload(Boot::Direct, "halt").args(["-M", "microvm,acpi=off"]));
    bare.terminate();
    assert_eq!(bare.wait().0.signal(), Some(15));
}

#[test]
fn a_triple_fault_is_told_with_what_is_known() {
    for boot in BOTH {
        let ended = ended(boot, "triple-fault", &["-no-reboot"]);
        assert_eq!(ended.status, Some(0), "{ended}");
        let words = ["a triple fault resets the guest", "last exits", "last line on COM1"];
        words.iter().for_each(|word| assert!(ended.stderr.contains(word), "{word}: {ended}"));
    }
}

#[test]
fn a_guest_that_only_dies_is_given_up() {
    // Nothing of the payload's output is seen, so it dies without a word each time.
    let machine = ["-M", "microvm,isa-serial=off"];
    let ended = ended(Boot::Direct, "triple-fault", &machine);
    assert_eq!(ended.status, Some(1), "{ended}");
    assert!(ended.stderr.contains("3 times in a row"), "{ended}");
}

#[test]
fn the_pidfile_lives_as_long_as_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let (pidfile, log) = (folder.path().join("pid"), folder.path().join("log"));
    let mut command = payload(Boot::Direct, "power-button");
    command.arg("-pidfile").arg(&pidfile).arg("-D").arg(&log);
    let machine = Waiting::start(&mut command);
    let number = fs::read_to_string(&pidfile).unwrap();
    assert_eq!(number.trim(), machine.0.id().to_string());
    let second = run(payload(Boot::Direct, "halt").arg("-pidfile").arg(&pidfile), b"", DEADLINE);
    assert_eq!(second.status, Some(1), "{second}");
    assert!(second.stderr.contains("another process holds it"), "{second}");
    machine.terminate();
    assert_eq!(machine.wait().0.code(), Some(0));
    assert!(!pidfile.exists());
    assert!(fs::read_to_string(&log).unwrap().contains("power button"));
}

#[test]
fn a_reset_starts_the_same_machine_again() {
    for boot in BOTH {
        let again = run_until_mark(&mut payload(boot, "ged-reset"), "guest-facts-end", 4, DEADLINE);
        let facts: Vec<_> = again.stdout.split("guest-facts-begin").skip(1).collect();
        let facts: Vec<_> =
            facts.iter().filter_map(|text| text.split("guest-facts-end").next()).collect();
        assert!(facts.len() >= 3, "{again}");
        // The clock is another each time.
        let same = |text: &str| {
            let lines = text.lines().filter(|line| !line.contains("tsc") && !line.contains("time"));
            lines.collect::<Vec<_>>().join("\n")
        };
        assert_eq!(same(facts[0]), same(facts[1]));
        assert_eq!(same(facts[1]), same(facts[2]));
    }
}

/// KVM's accounts of a machine have the name of its descriptor: of two at a time, the second has
/// none, and a line in the host's log.
#[test]
fn a_reset_takes_another_descriptor_while_the_old_machine_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let mut command = payload(Boot::Direct, "halt");
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", path.display()));
    let mut machine = Waiting::start(&mut command);
    let first = machine.descriptors();
    let mut qmp = UnixStream::connect(&path).unwrap();
    qmp.write_all(br#"{"execute":"qmp_capabilities"}{"execute":"system_reset"}"#).unwrap();
    machine.read_facts();
    let second = machine.descriptors();
    assert_eq!((first.len(), second.len()), (1, 1), "the old one is closed");
    assert_ne!(first, second);
    machine.0.kill().unwrap();
    machine.wait();
}

/// What a system has, as far as starts could leave something behind.
fn accounts() -> [(&'static str, u64); 4] {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let first = |text: &str| text.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let memory = read("/proc/meminfo");
    let of_kernel = ["SUnreclaim:", "PageTables:", "SecPageTables:", "Percpu:", "VmallocUsed:"];
    let kib = |name| memory.lines().find_map(|line| line.strip_prefix(name)).map_or(0, first);
    // Only root can look there; before Linux 6.13, a thread of the kernel's tells, too.
    let machines = match fs::read_dir("/sys/kernel/debug/kvm") {
        Ok(entries) => entries.filter(|e| e.as_ref().unwrap().path().is_dir()).count(),
        Err(_) => {
            let names = fs::read_dir("/proc").unwrap().flatten();
            let names = names.filter_map(|e| fs::read_to_string(e.path().join("comm")).ok());
            names.filter(|name| name.starts_with("kvm-nx-lpage")).count()
        }
    };
    [
        ("processes and threads", first(read("/proc/loadavg").split_once('/').unwrap().1)),
        ("open files", first(&read("/proc/sys/fs/file-nr"))),
        ("virtual machines", machines as u64),
        ("KiB of the kernel's memory", of_kernel.map(kib).iter().sum()),
    ]
}

/// `cargo xtask density` does the same ten thousand times.
#[test]
fn starts_leave_nothing_behind() {
    const STARTS: usize = 24;
    // Of each start, what half a machine takes; of a machine, KVM and the rest have 300 KiB.
    const LIMITS: [u64; 4] = [12, 12, 12, 24 * 150];
    let start = || {
        for index in 0..STARTS {
            let ended = ended(BOTH[index % 2], "power-off", &[]);
            assert_eq!(ended.status, Some(0), "{ended}");
        }
    };
    // What the first starts make, others use again.
    start();
    // Others may take something meanwhile, but not each time.
    let mut grown = Vec::new();
    for _ in 0..3 {
        let before = accounts();
        start();
        let begun = Instant::now();
        loop {
            let each = accounts().into_iter().zip(before).zip(LIMITS);
            let each =
                each.map(|(((name, after), (_, before)), limit)| (name, before, after, limit));
            grown = each.filter(|(_, before, after, limit)| *after > before + limit).collect();
            if grown.is_empty() {
                return;
            }
            // The kernel takes machines apart after their processes have ended.
            if begun.elapsed() > Duration::from_secs(5) {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    panic!("{STARTS} starts left something each time (before, after, limit): {grown:?}");
}

/// Starts a machine whose BIOS halts at once, and reads its messages until one has `word`.
fn silent(append: &str, word: &str) -> String {
    let bios = tempfile::NamedTempFile::new().unwrap();
    // Nothing but `hlt`, at the reset vector too.
    fs::write(bios.path(), [0xf4; 0x1_0000]).unwrap();
    let mut command = Command::new(product("microvm"));
    command.arg("-bios").arg(bios.path()).arg("-kernel").arg(product("payload.bzImage"));
    command.args(["-nodefaults", "-serial", "stdio", "-append", append]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut messages = child.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains(word) {
        let mut bytes = [0; 256];
        let count = messages.read(&mut bytes).unwrap();
        assert_ne!(count, 0, "the machine ended: {said}");
        said.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    said
}

#[test]
fn a_guest_that_says_nothing_is_wondered_at() {
    let without = thread::spawn(|| silent("quiet", "CPU 0 at"));
    let with = silent("console=ttyS0 quiet", "CPU 0 at");
    assert!(with.contains("may lack a driver for COM1"), "{with}");
    let without = without.join().unwrap();
    assert!(without.contains("-append has no console=ttyS0"), "{without}");
    assert!(without.contains("before the firmware's first sign"), "{without}");
}

#[test]
fn a_firmware_s_line_is_not_lost_with_the_console() {
    // 4 MiB hold the firmware, but not the initrd.
    let initrd = tempfile::NamedTempFile::new().unwrap();
    initrd.as_file().set_len(3 << 20).unwrap();
    let mut command = Command::new(product("microvm"));
    command.arg("-bios").arg(product("bios-microvm.bin"));
    command.arg("-kernel").arg(product("payload.bzImage")).arg("-initrd").arg(initrd.path());
    let ended = run(command.args(["-m", "4M", "-serial", "null"]), b"", DEADLINE);
    assert_eq!(ended.status, Some(1), "{ended}");
    assert!(ended.stderr.contains("bios-microvm: error 45: "), "{ended}");
}

#[test]
fn a_device_that_no_driver_took_is_named_when_the_guest_is_given_up() {
    let mut command = payload(Boot::Direct, "halt");
    let machine = Waiting::start(command.args(["-device", "virtio-rng-device"]));
    let pid = machine.0.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (_, said) = machine.wait();
    assert!(said.contains("virtio-rng: no driver took it"), "{said}");
    assert!(said.contains("CONFIG_VIRTIO_MMIO"), "{said}");
}

/// The warning comes before the guest runs, where it cannot run, and nowhere else.
#[test]
fn linux_on_a_kvm_that_interprets_is_warned_of() {
    let ground = run(Command::new(product("microvm")).args(["-accel", "help"]), b"", DEADLINE);
    let mut command = Command::new(product("microvm"));
    command.args(["-m", "128M", "-S", "-qmp", "stdio", "-kernel"]).arg(kernel());
    let quit = br#"{"execute":"qmp_capabilities"}{"execute":"quit"}"#;
    let ended = run(&mut command, quit, DEADLINE);
    assert_eq!(ended.status, Some(0), "{ended}");
    let warned =
        ended.stderr.contains("interprets kernel code") && ended.stderr.lines().count() == 1;
    assert_eq!(warned, ground.stdout.contains("kvm: interpreted"), "{ground}{ended}");
}
