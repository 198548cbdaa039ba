//! Every job of this repository: `cargo xtask JOB`.
//!
//! Products go to `target/dist`, fetched things to `target/cache`; nothing else is written. A
//! missing tool is installed when xtask runs as root, else the command that installs it is
//! printed.
#![forbid(unsafe_code)]

mod apt;
mod boot;
mod build;
mod check;
mod compare;
mod cost;
mod density;
mod fetch;
mod ground;
mod image;
mod initramfs;
mod kernel;
mod lab;
mod measure;
mod process;
mod settle;
mod test;
mod tidy;
mod timeline;
mod workload;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask JOB

  boot [OPTIONS]   a Linux kernel to its init, by firmware and directly, timed (boot --help)
  test [OPTIONS]   all tests, on whatever this machine offers (test --help)
  build            everything below target/dist: the VMM, the BIOS, the guests
  build-firmware   target/dist/bios-microvm.bin alone
  build-payload    target/dist/payload.bzImage alone
  build-guest      target/dist/initramfs.cpio alone: the tested Linux guest's files
  build-kernel     a small Linux for microVMs, from the distribution's sources
  lab [OPTIONS] -- COMMAND [ARGUMENTS]
                   runs a command in a Linux that has a real /dev/kvm (lab --help)
  ground [--host auto|kvm|lab]
                   says where guests can run here, and why
  firmware-cost    exits, instructions and memory of our BIOS, qboot and SeaBIOS
  compare          starts of one kernel by microvm and by QEMU, in the lab's clock (or on a KVM)
  run              a command in a Debian, by `microvm run` and in a container, with their times
  density          starts per second, memory of each, and what is left of ten thousand
  bench-devices    what requests to devices cost, beside QEMU's microvm, in the lab's clock
  check            formatting, lints and the rules of this repository
  tidy             the rules of this repository alone
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let job = arguments.next().unwrap_or_default();
    match run(&job.to_string_lossy(), arguments.collect()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a job; what it returns is our exit status.
fn run(job: &str, arguments: Vec<OsString>) -> Result<u8> {
    if !matches!(
        job,
        "boot"
            | "measure"
            | "test"
            | "lab"
            | "ground"
            | "firmware-cost"
            | "compare"
            | "observe"
            | "density"
            | "run"
            | "stopwatch"
    ) && !arguments.is_empty()
    {
        bail!("{job} takes no arguments");
    }
    match job {
        "boot" => boot::main(arguments).map(|()| 0),
        // What `boot` runs on the chosen ground.
        "measure" => measure::main(arguments).map(|()| 0),
        "test" => test::main(arguments),
        "build" => build::build_all().map(|()| 0),
        "build-firmware" => build::build_firmware().map(|_| 0),
        "build-payload" => build::build_payload().map(|_| 0),
        "build-guest" => build::build_initramfs().map(|_| 0),
        "build-kernel" => kernel::main().map(|()| 0),
        "lab" => lab::main(arguments),
        "ground" => ground::main(arguments).map(|()| 0),
        "firmware-cost" => cost::main(&arguments).map(|()| 0),
        "compare" => compare::main(arguments).map(|()| 0),
        // What `compare` runs in the lab.
        "observe" => compare::observe(&arguments).map(|()| 0),
        "run" => workload::main(arguments),
        // What `run` runs in the lab.
        "stopwatch" => workload::stopwatch(&arguments).map(|()| 0),
        "density" => density::main(arguments).map(|()| 0),
        "bench-devices" => test::bench_devices(),
        "check" => check::main().map(|()| 0),
        "tidy" => tidy::main().map(|()| 0),
        "help" | "-h" | "--help" => {
            print!("{USAGE}");
            Ok(0)
        }
        "" => bail!("which job?\n{USAGE}"),
        unknown => bail!("{unknown:?} is no job of ours\n{USAGE}"),
    }
}
