//! The nested lab: one command in a Linux that has a real /dev/kvm, on any machine.
//!
//! QEMU emulates a machine with AMD's virtualisation extension, an unmodified distribution kernel
//! runs in it, and its KVM works as on hardware, only slower. The command, its files and its
//! libraries travel in the initramfs; its output comes back over serial ports.

mod carry;
mod clock;
mod machine;
mod options;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use guest::lab as contract;
use vmm::workload::modules::Modules;

use crate::initramfs::Archive;
use crate::{build, fetch, process, workspace};

/// Seconds of wall time that a command gets when nobody says otherwise.
const TIMEOUT_S: u64 = 600;
/// How often a lab that stands still is tried.
const TRIES: u32 = 4;
/// Memory of the lab's machine when nobody says otherwise.
const MEMORY_MIB: u32 = 2048;

/// A command to run in the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabRun {
    /// The program, looked up as the shell does, and its arguments.
    pub command: Vec<OsString>,
    /// Files and directories to carry along.
    pub files: Vec<Carried>,
    /// Directories with programs that need nothing but what is in there.
    pub trees: Vec<Carried>,
    /// Environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// Count instructions: one virtual nanosecond each, the same on every run.
    pub icount: bool,
    /// The machine's memory.
    pub memory_mib: u32,
    /// Wall time after which the lab is given up.
    pub timeout: Duration,
    /// Wall time in which the command surely prints something, where one is known.
    pub silence: Option<Duration>,
    /// Pass our standard input on.
    pub stdin: bool,
}

/// A file or directory of the host, and its absolute path in the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Where it is.
    pub host: PathBuf,
    /// Where it will be.
    pub guest: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status, 128 + the signal when it was killed.
    pub status: i32,
    /// Its standard output, when that was asked for.
    pub stdout: Vec<u8>,
}

impl LabRun {
    /// A command with the usual settings.
    pub fn new(command: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            files: Vec::new(),
            trees: Vec::new(),
            environment: Vec::new(),
            icount: false,
            memory_mib: MEMORY_MIB,
            timeout: Duration::from_secs(TIMEOUT_S),
            silence: None,
            stdin: false,
        }
    }
}

/// `cargo xtask lab`: runs what the arguments say; the command's exit status.
pub fn main(arguments: Vec<OsString>) -> Result<u8> {
    match options::parse(arguments)? {
        Some(lab_run) => {
            let status = run(&lab_run)?;
            Ok(u8::try_from(status).unwrap_or(u8::MAX))
        }
        None => {
            print!("{}", options::USAGE);
            Ok(0)
        }
    }
}

/// Runs a command with its output passed through; its exit status.
pub fn run(lab_run: &LabRun) -> Result<i32> {
    Ok(start(lab_run, machine::Stdout::Pass)?.status?)
}

/// Runs a command and keeps its standard output; its standard error is passed through. When the
/// lab stands still, says so and tries again.
pub fn capture(lab_run: &LabRun) -> Result<Outcome> {
    try_again(lab_run, machine::Stdout::Keep, |_, _| ())
}

/// Runs a command, passes its output through and keeps it. Before another try, `rest` is told what
/// the command printed until the lab stood still, and may take away from the command what needs not
/// be done again.
pub fn capture_rest(lab_run: &LabRun, rest: impl FnMut(&mut LabRun, &str)) -> Result<Outcome> {
    try_again(lab_run, machine::Stdout::Tee, rest)
}

fn try_again(
    lab_run: &LabRun,
    stdout: machine::Stdout,
    mut rest: impl FnMut(&mut LabRun, &str),
) -> Result<Outcome> {
    let mut lab_run = lab_run.clone();
    let mut tries = TRIES;
    loop {
        let machine::Ended { status, stdout } = start(&lab_run, stdout)?;
        let given_up = match status {
            Ok(status) => return Ok(Outcome { status, stdout }),
            Err(given_up) => given_up,
        };
        tries -= 1;
        if tries == 0 || matches!(given_up.reason, clock::Reason::Late(_)) {
            return Err(given_up.into());
        }
        rest(&mut lab_run, &String::from_utf8_lossy(&stdout));
        // Where all is the same, it would stop at the same instruction.
        lab_run.memory_mib += 64;
        eprintln!("lab: {given_up}; once more, with {} MiB", lab_run.memory_mib);
    }
}

fn start(lab_run: &LabRun, stdout: machine::Stdout) -> Result<machine::Ended> {
    let qemu = fetch::qemu()?;
    let kernel = fetch::kernel()?;
    let archive = pack(lab_run, &kernel)?;

    let directory = workspace::target("lab")?;
    let _lock = workspace::lock(&directory, "lab: waiting for another run to end")?;
    let initrd = directory.join("initramfs.cpio");
    workspace::replace(&initrd, |partial| archive.write(partial))?;
    let size_mb = fs::metadata(&initrd).map_or(0, |found| found.len().div_ceil(1_000_000));
    let clock = if lab_run.icount { ", counting instructions" } else { "" };
    eprintln!("lab: starting Linux {} with {size_mb} MB of files{clock}", kernel.release);
    let console = directory.join("console.log");
    let machine = machine::Machine { qemu, kernel: kernel.vmlinuz, initrd, console };
    machine.run(lab_run, stdout)
}

/// The lab's initramfs: its init, KVM, the command, and what the command needs.
fn pack(lab_run: &LabRun, kernel: &fetch::Kernel) -> Result<Archive> {
    let mut archive = Archive::new();
    archive.host_file(Path::new("/init"), &build::build_lab_init()?)?;
    let modules = add_modules(&mut archive, &Modules::find(&kernel.modules)?)?;

    let here = std::env::current_dir().context("finding the current directory")?;
    archive.directory(&here)?;
    for Carried { host, guest } in &lab_run.files {
        archive.host_file(guest, host)?;
    }
    let (program, arguments) = lab_run.command.split_first().context("which command?")?;
    let program = resolve(program, &here, &archive)?;
    if program.exists() && !archive.has_file(&program) {
        archive.host_file(&program, &program)?;
    }
    carry::add_shell_tools(&mut archive, &program)?;
    carry::add_libraries(&mut archive)?;
    for Carried { host, guest } in &lab_run.trees {
        archive.host_file(guest, host)?;
    }

    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().map(|a| a.as_ref()));
    let command = contract::join_items(words.map(OsStrExt::as_bytes));
    let environment =
        contract::join_items(environment(lab_run).iter().map(Vec::as_slice).collect::<Vec<_>>());
    for (path, content) in [
        (contract::COMMAND, command),
        (contract::ENVIRONMENT, environment),
        (contract::DIRECTORY, here.as_os_str().as_bytes().to_vec()),
        (contract::STDIN, machine::Input::of(lab_run).word().into()),
        (contract::MODULES, modules.into_bytes()),
    ] {
        archive.bytes(Path::new(path), 0o644, content)?;
    }
    Ok(archive)
}

/// Adds KVM and what it needs; the list for the lab's init.
fn add_modules(archive: &mut Archive, modules: &Modules) -> Result<String> {
    let mut list = String::new();
    for module in modules.with_dependencies("kvm-amd")? {
        let path = format!("/lab/{}.ko", module.name);
        archive.bytes(Path::new(&path), 0o644, module.content)?;
        list.push_str(&path);
        list.push('\n');
    }
    Ok(list)
}

/// The program's absolute path in the lab.
fn resolve(program: &OsString, here: &Path, archive: &Archive) -> Result<PathBuf> {
    let path = here.join(program);
    if archive.has_file(&path) {
        return Ok(path);
    }
    let found = process::find(program);
    found.map(|found| here.join(found)).with_context(|| {
        format!("{} is no program here, nor a carried file", Path::new(program).display())
    })
}

fn environment(lab_run: &LabRun) -> Vec<Vec<u8>> {
    let defaults = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/tmp"),
        ("TERM", "linux"),
    ];
    let defaults = defaults.map(|(name, value)| (name.into(), value.into()));
    let pairs = defaults.iter().chain(&lab_run.environment);
    pairs.map(|(name, value)| [name.as_bytes(), value.as_bytes()].join(&b'=')).collect()
}
