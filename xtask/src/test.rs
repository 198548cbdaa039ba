//! `cargo xtask test`: all tests, each on the best ground that this machine offers.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lexopt::{Arg, Parser};

use crate::ground::{self, Choice, Ground};
use crate::lab::{self, Carried, LabRun};
use crate::{apt, build, fetch, kernel, process, workspace};

const USAGE: &str = "\
usage: cargo xtask test [--host auto|kvm|lab] [--full] [--only WORD]

Builds all and runs all tests. --host says where Linux guests run; by default on this machine's KVM
when it runs kernel code natively, else in the nested lab. --full runs each cell of the matrix of
machines, entries, kernels, memory sizes and initrds, of which there is a sample else, kills 20
machines that write to their disks, not 4, and boots machines without ACPI from disks, for which it
builds a kernel (xtask build-kernel). --only runs the suites with WORD in their name.
";

/// The names under which `tests/src/products.rs` looks for things.
const DIST: &str = "MICROVM_DIST";
const KERNEL: &str = "MICROVM_KERNEL";
const STANDARD_KERNEL: &str = "MICROVM_STANDARD_KERNEL";
const GUEST_KERNEL: &str = "MICROVM_GUEST_KERNEL";
const IPXE: &str = "MICROVM_IPXE";
const MEMTEST: &str = "MICROVM_MEMTEST";
const QMP_CLIENT: &str = "MICROVM_QMP_CLIENT";
/// Set when all is to be tested, not a sample.
const FULL: &str = "MICROVM_FULL";
/// Set where the tests' KVM is an emulator's.
const NESTED: &str = "MICROVM_NESTED";
const BUSYBOX: &str = "MICROVM_BUSYBOX";
/// Names the virtiofsd that is written in Rust.
const OTHER_VIRTIOFSD: &str = "MICROVM_OTHER_VIRTIOFSD";
const VHOST_DEVICE_VSOCK: &str = "MICROVM_VHOST_DEVICE_VSOCK";
/// The lab's wall time for a whole suite.
const LAB_LIMIT: Duration = Duration::from_secs(1200);
/// The lab's wall time for a test of the sample: several times what the longest takes.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// Modules that guests in the lab load, and the lab itself.
const MODULES: [&str; 26] = [
    "drivers/acpi/button",
    "drivers/block/loop",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "drivers/input/evdev",
    "drivers/net/net_failover",
    "drivers/net/tun",
    "drivers/net/virtio_net",
    "drivers/vhost/vhost",
    "drivers/vhost/vhost_iotlb",
    "drivers/vhost/vhost_vsock",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_balloon",
    "drivers/virtio/virtio_mmio",
    "drivers/virtio/virtio_ring",
    "fs/fuse/fuse",
    "fs/fuse/virtiofs",
    "fs/overlayfs/overlay",
    "net/802/stp",
    "net/bridge/bridge",
    "net/core/failover",
    "net/llc/llc",
    "net/vmw_vsock/vmw_vsock_virtio_transport",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common",
    "net/vmw_vsock/vsock",
];

const UNIT_TESTS: [&str; 4] = ["--workspace", "--exclude=regression", "--lib", "--bins"];
const HOST_TESTS: [&str; 5] =
    ["--package=regression", "--lib", "--test=image", "--test=contract", "--test=messages"];
const MAPPED_ONCE: [&str; 2] = ["--package=regression", "--test=mapped_once"];
/// Outside the workspace: built by another compiler when they fuzz.
const FUZZ_TESTS: [&str; 3] =
    ["--manifest-path=fuzz/Cargo.toml", "--target-dir=target/fuzz", "--lib"];
const QEMU_TESTS: [&str; 9] = [
    "--package=regression",
    "--test=qemu",
    "--test=qemu_pc",
    "--test=qemu_cpus",
    "--test=qemu_features",
    "--test=qemu_memory",
    "--test=qemu_options",
    "--test=peers_defects",
    "--test=other_kernels",
];
const LINUX_MACHINES: [&str; 2] = ["--package=regression", "--test=linux_machines"];
const DISK: [&str; 2] = ["--package=regression", "--test=disk"];
const DEVICES: [&str; 2] = ["--package=regression", "--test=devices"];
const FOLDERS: [&str; 2] = ["--package=regression", "--test=folders"];
const WORKLOADS: [&str; 2] = ["--package=regression", "--test=workloads"];
const ACPI_OFF: [&str; 2] = ["--package=regression", "--test=acpi_off"];
const SPEED: [&str; 2] = ["--package=regression", "--test=speed"];
const COMPARE: [&str; 2] = ["--package=regression", "--test=compare"];
/// The daemon that serves folders.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Memory of a lab whose folders hold a file of 1 GiB and its copy.
const WORKLOADS_MIB: u32 = 5120;
/// What QEMU needs besides its program and its libraries, where distributions have it: its emulator
/// as a module, and a microvm's option ROMs.
const QEMU_FILES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];
const MATRIX: [&str; 2] = ["--package=regression", "--test=matrix"];
const MATRIX_SAMPLE: [&str; 4] = ["--package=regression", "--test=matrix", "--", "--sample"];

/// Runs the job; the status is 1 when a test failed.
pub fn main(arguments: Vec<OsString>) -> Result<u8> {
    let mut choice = Choice::Auto;
    let mut full = false;
    let mut only = String::new();
    let mut parser = Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("host") => choice = Choice::parse(&parser.value()?)?,
            Arg::Long("full") => full = true,
            Arg::Long("only") => only = parser.value()?.to_string_lossy().into_owned(),
            Arg::Long("help") | Arg::Short('h') => {
                print!("{USAGE}");
                return Ok(0);
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    build::build_all()?;
    fetch::qemu()?;
    let tests = Tests::fetch(full)?;
    let microvm = workspace::product(build::MICROVM)?;
    let linux = choice.ground(&microvm)?;
    // The payload runs on every /dev/kvm that can be used at all, interpreting or not.
    let payload = match choice {
        Choice::Auto if ground::is_kvm_usable(&microvm)? => Ground::Kvm,
        Choice::Auto => Ground::Lab,
        Choice::Fixed(ground) => ground,
    };
    let matrix: (_, &[_]) = if full {
        ("the matrix under QEMU", &MATRIX)
    } else {
        ("a sample of the matrix", &MATRIX_SAMPLE)
    };
    let acpi_off: (_, _, &[_]) = ("disks without ACPI", uncounted(linux), &ACPI_OFF);
    let suites: [(&str, Place, &[&str]); 20] = [
        ("unit and property tests", Place::Host, &UNIT_TESTS),
        ("fuzz corpora", Place::Host, &FUZZ_TESTS),
        ("image, contract, messages", Place::Host, &HOST_TESTS),
        ("tiny guests under microvm", payload.into(), &["--package=vmm", "--test=microvm"]),
        ("payload under microvm", payload.into(), &["--package=regression", "--test=payload"]),
        ("a hostile driver", payload.into(), &["--package=regression", "--test=hostile"]),
        ("memory under microvm", payload.into(), &["--package=regression", "--test=memory"]),
        ("a machine's life", payload.into(), &["--package=regression", "--test=life"]),
        ("consoles", payload.into(), &["--package=regression", "--test=console"]),
        ("QMP by qemu.qmp", payload.into(), &["--package=regression", "--test=qmp"]),
        ("the image mapped once", payload.into(), &MAPPED_ONCE),
        ("microvm against QEMU's", payload.into(), &COMPARE),
        ("our BIOS under QEMU", Place::Host, &QEMU_TESTS),
        (matrix.0, Place::Host, matrix.1),
        ("Linux under microvm", linux.into(), &["--package=regression", "--test=linux"]),
        ("Linux on many machines", uncounted(linux), &LINUX_MACHINES),
        ("disks under Linux", uncounted(linux), &DISK),
        ("other devices under Linux", uncounted(linux), &DEVICES),
        ("folders under Linux", uncounted(linux), &FOLDERS),
        ("workloads under Linux", uncounted(linux), &WORKLOADS),
    ];
    let suites = suites.into_iter().chain(full.then_some(acpi_off));
    let suites = suites.filter(|(name, ..)| name.contains(&only));
    let suites = suites.map(|(name, place, arguments)| tests.run(name, place, arguments));
    let suites = suites.collect::<Result<Vec<_>>>()?;
    if suites.is_empty() {
        bail!("--only {only}: no suite has this in its name");
    }
    summarize(&suites)
}

/// `cargo xtask bench-devices`: what requests to devices cost, beside QEMU's microvm.
pub fn bench_devices() -> Result<u8> {
    build::build_all()?;
    let tests = Tests::fetch(false)?;
    eprintln!("bench-devices: nine rows for each program, about two minutes");
    let outcome = lab::capture(&tests.lab_run(&SPEED, true)?)?;
    print!("{}", String::from_utf8_lossy(&outcome.stdout));
    Ok(u8::from(outcome.status != 0))
}

/// Where a suite runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// As a program of this machine.
    Host,
    /// With this machine's KVM.
    Kvm,
    /// In the nested lab, whose clock counts instructions.
    Lab,
    /// In the nested lab, whose clock is the host's.
    UncountedLab,
}

impl From<Ground> for Place {
    fn from(ground: Ground) -> Self {
        match ground {
            Ground::Kvm => Self::Kvm,
            Ground::Lab => Self::Lab,
        }
    }
}

/// Where guests with several CPUs run: an emulator that counts instructions stops them (see
/// docs/lab.md).
fn uncounted(ground: Ground) -> Place {
    match ground {
        Ground::Kvm => Place::Kvm,
        Ground::Lab => Place::UncountedLab,
    }
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Kvm => "host KVM",
            Self::Lab | Self::UncountedLab => "nested lab",
        }
    }
}

/// What a suite's test programs reported.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    programs: u32,
}

struct Suite {
    name: &'static str,
    place: Place,
    counts: Counts,
    succeeded: bool,
    seconds: u64,
}

struct Tests {
    kernel: PathBuf,
    modules: PathBuf,
    standard_kernel: PathBuf,
    ipxe: PathBuf,
    memtest: PathBuf,
    qmp_client: PathBuf,
    busybox: PathBuf,
    vhost_device_vsock: PathBuf,
    e2fsprogs: [PathBuf; 2],
    /// There when all is to be tested.
    guest_kernel: Option<PathBuf>,
    /// Likewise: QEMU's is always there.
    other_virtiofsd: Option<PathBuf>,
}

impl Tests {
    /// Has all that tests need and that is not built here.
    fn fetch(full: bool) -> Result<Self> {
        let fetch::Kernel { vmlinuz: kernel, modules, .. } = fetch::kernel()?;
        let standard_kernel = fetch::standard_kernel()?;
        // The tests look for them beside the images.
        for image in [&kernel, &standard_kernel] {
            fetch::vmlinux(image)?;
        }
        let (ipxe, memtest) = (fetch::ipxe()?, fetch::memtest()?);
        Ok(Self {
            kernel,
            modules,
            standard_kernel,
            ipxe,
            memtest,
            qmp_client: fetch::qmp_client()?,
            busybox: fetch::busybox()?,
            vhost_device_vsock: fetch::vhost_device_vsock()?,
            e2fsprogs: fetch::e2fsprogs()?,
            guest_kernel: full.then(kernel::build).transpose()?.map(|kernel| kernel.bzimage),
            other_virtiofsd: full.then(fetch::virtiofsd).transpose()?,
        })
    }

    fn run(&self, name: &'static str, place: Place, arguments: &[&str]) -> Result<Suite> {
        eprintln!("test: {name} ({})", place.name());
        let start = Instant::now();
        let mut counts = Counts::default();
        let succeeded = match place {
            Place::Host | Place::Kvm => self.run_here(arguments, &mut counts)?,
            Place::Lab => self.run_in_lab(arguments, true, &mut counts)?,
            Place::UncountedLab => self.run_in_lab(arguments, false, &mut counts)?,
        };
        let seconds = start.elapsed().as_secs();
        Ok(Suite { name, place, counts, succeeded, seconds })
    }

    /// Modules of the kernel that guests in the lab load, and the lab itself.
    fn modules(&self) -> [PathBuf; MODULES.len()] {
        MODULES.map(|module| self.modules.join("kernel").join(format!("{module}.ko")))
    }

    fn environment(&self) -> Result<Vec<(OsString, OsString)>> {
        let paths = [
            (DIST, workspace::target("dist")?),
            (KERNEL, self.kernel.clone()),
            (STANDARD_KERNEL, self.standard_kernel.clone()),
            (IPXE, self.ipxe.clone()),
            (MEMTEST, self.memtest.clone()),
            (QMP_CLIENT, self.qmp_client.clone()),
            (BUSYBOX, self.busybox.clone()),
            (VHOST_DEVICE_VSOCK, self.vhost_device_vsock.clone()),
        ];
        let full = self.guest_kernel.iter().flat_map(|kernel| {
            [(FULL.into(), "1".into()), (GUEST_KERNEL.into(), kernel.clone().into())]
        });
        let other = self.other_virtiofsd.iter();
        let other = other.map(|path| (OTHER_VIRTIOFSD.into(), path.clone().into()));
        let paths = paths.map(|(name, path)| (name.into(), path.into())).into_iter();
        Ok(paths.chain(full).chain(other).collect())
    }

    fn run_here(&self, arguments: &[&str], counts: &mut Counts) -> Result<bool> {
        let mut command = cargo_test(&["--no-fail-fast"]);
        command.args(arguments).envs(self.environment()?);
        let mut child = command.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
        let output = BufReader::new(child.stdout.take().context("the tests' output")?);
        let mut stdout = std::io::stdout();
        for line in output.split(b'\n') {
            let line = line.context("reading the tests' output")?;
            stdout.write_all(&line).and_then(|()| stdout.write_all(b"\n")).context("printing")?;
            counts.read(&String::from_utf8_lossy(&line));
        }
        Ok(child.wait().context("waiting for cargo test")?.success())
    }

    /// Runs the test program itself in the lab: one start of the lab for the whole suite, or for
    /// those tests that had not passed when the lab stood still.
    fn run_in_lab(&self, arguments: &[&str], icount: bool, counts: &mut Counts) -> Result<bool> {
        let lab_run = self.lab_run(arguments, icount)?;
        let outcome = lab::capture_rest(&lab_run, |lab_run, printed| {
            for test in passed(printed) {
                counts.passed += 1;
                lab_run.command.extend(["--skip".into(), test.into()]);
            }
        })?;
        let output = String::from_utf8_lossy(&outcome.stdout);
        output.lines().for_each(|line| counts.read(line));
        Ok(outcome.status == 0)
    }

    /// A test program in the lab, with all that it needs.
    fn lab_run(&self, arguments: &[&str], icount: bool) -> Result<LabRun> {
        let program = test_program(arguments)?;
        let mut lab_run = LabRun::new([program.into_os_string(), "--test-threads=1".into()]);
        // Who skips a test means that one, and not those whose names contain its name.
        lab_run.command.push("--exact".into());
        lab_run.icount = icount;
        lab_run.timeout = LAB_LIMIT;
        lab_run.silence = self.guest_kernel.is_none().then_some(TEST_LIMIT);
        lab_run.environment.extend(self.environment()?);
        lab_run.environment.push((NESTED.into(), "1".into()));
        let dist = workspace::target("dist")?;
        // The VMM's own tests run the binary that cargo built for them.
        let debug_vmm = workspace::target("debug")?.join(build::MICROVM);
        let shell = ["/bin/sh", "/bin/kill"].map(PathBuf::from);
        let mut files = vec![dist, self.kernel.clone(), debug_vmm];
        files.extend(shell.into_iter().chain(self.modules()));
        if arguments == DISK || arguments == ACPI_OFF {
            files.extend(self.e2fsprogs.clone());
        }
        if arguments == DEVICES {
            files.push(self.vhost_device_vsock.clone());
        }
        if arguments == FOLDERS || arguments == WORKLOADS {
            files.push(apt::file(Path::new(VIRTIOFSD), "qemu-system-common")?);
            files.extend(self.other_virtiofsd.clone());
            if self.other_virtiofsd.is_some() {
                lab_run.memory_mib = WORKLOADS_MIB;
            }
        }
        if arguments == ACPI_OFF {
            files.extend(self.guest_kernel.clone());
        }
        files.push(self.busybox.clone());
        if arguments == COMPARE || arguments == SPEED {
            files.push(fetch::qemu()?);
            files.extend(QEMU_FILES.map(PathBuf::from));
        }
        for file in files {
            if file.exists() {
                lab_run.files.push(Carried { host: file.clone(), guest: file });
            }
        }
        Ok(lab_run)
    }
}

fn cargo_test(arguments: &[&str]) -> Command {
    let mut command = Command::new(build::cargo());
    command.args(["test", "--quiet"]).args(arguments).current_dir(workspace::root());
    command
}

/// Builds the one test program that `arguments` name; its path.
fn test_program(arguments: &[&str]) -> Result<PathBuf> {
    let mut command = cargo_test(arguments);
    let messages =
        process::output(command.args(["--no-run", "--message-format=json-render-diagnostics"]))?;
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"] == true;
        Some(PathBuf::from(message["executable"].as_str().filter(|_| is_test)?))
    });
    program.context("cargo test --no-run names no program")
}

/// The tests that a test program reports as passed, one line each.
fn passed(output: &str) -> impl Iterator<Item = &str> {
    let tests = output.lines().filter_map(|line| line.strip_prefix("test "));
    tests.filter_map(|test| test.trim_end().strip_suffix(" ... ok"))
}

impl Counts {
    /// Takes in one line of a test program's output: its summary counts, the rest does not.
    fn read(&mut self, line: &str) {
        let Some((_, summary)) = line.split_once("test result: ") else { return };
        let number = |what: &str| -> u32 {
            let before = summary.split_once(what).map_or("", |(before, _)| before);
            before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        self.passed += number(" passed");
        self.failed += number(" failed");
        self.programs += 1;
    }
}

fn summarize(suites: &[Suite]) -> Result<u8> {
    println!();
    println!("{:32}{:12}{:>8}{:>8}{:>10}", "suite", "ground", "passed", "failed", "seconds");
    for suite in suites {
        let Suite { name, place, counts, seconds, .. } = suite;
        let Counts { passed, failed, .. } = counts;
        println!("{name:32}{:12}{passed:>8}{failed:>8}{seconds:>10}", place.name());
    }
    let total = |of: fn(&Counts) -> u32| suites.iter().map(|suite| of(&suite.counts)).sum::<u32>();
    println!("{} passed, {} failed", total(|c| c.passed), total(|c| c.failed));
    for suite in suites {
        // A program that died before its summary has counted nothing.
        if suite.counts.failed == 0 && !suite.succeeded {
            bail!("{}: a test program ended without its summary", suite.name);
        }
        if suite.counts.passed + suite.counts.failed == 0 {
            bail!("{}: no test ran", suite.name);
        }
    }
    Ok(u8::from(suites.iter().any(|suite| !suite.succeeded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
            "\x1b[31mtest result: FAILED. 10 passed; 2 failed; 0 ignored",
            "10 passed the mark",
        ] {
            counts.read(line);
        }
        assert_eq!(counts, Counts { passed: 13, failed: 2, programs: 2 });
    }

    #[test]
    fn only_what_passed_is_not_run_again() {
        let output =
            "running 4 tests\r\ntest a::b ... ok\r\ntest c ... FAILED\ntest d ... ok\ntest e ... ";
        assert_eq!(passed(output).collect::<Vec<_>>(), ["a::b", "d"]);
    }
}
