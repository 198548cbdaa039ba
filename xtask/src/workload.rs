//! `cargo xtask run`: a command by `microvm run` and in a container, timed.
//!
//! Both run in one lab that counts instructions, on the same folder, and are watched from outside:
//! when their first byte of output came, and when they had ended.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::lab::{self, Carried, LabRun};
use crate::{apt, build, fetch, kernel, workspace};

const USAGE: &str = "\
usage: cargo xtask run [--small-kernel] [--root DIR] [--] [COMMAND [ARGUMENTS]]

Runs COMMAND in the lab, on a Debian made by debootstrap, by `microvm run` and in a container
(unshare), and prints what it said and what both took.

  --root DIR      this folder instead of Debian
  --small-kernel  the kernel of `cargo xtask build-kernel` too, which takes minutes to build
";

/// The command when none is given.
const COMMAND: [&str; 3] = ["/bin/bash", "-c", "apt-get --version; cat /etc/os-release; exit 7"];
/// A container without a runtime: namespaces of its own, and the folder as its root.
const CONTAINER: [&str; 9] = [
    "--fork",
    "--pid",
    "--mount",
    "--mount-proc",
    "--uts",
    "--ipc",
    "--net",
    "--kill-child",
    "--root",
];
/// What a guest's kernel needs of its modules.
const MODULES: [&str; 7] = [
    "drivers/char/virtio_console",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_mmio",
    "drivers/virtio/virtio_ring",
    "fs/fuse/fuse",
    "fs/fuse/virtiofs",
    "fs/overlayfs/overlay",
];
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Room for the folder, twice: once as the lab's initramfs.
const MEMORY_MIB: u32 = 3072;

/// What is to be run.
struct Wanted {
    root: Option<PathBuf>,
    small_kernel: bool,
    command: Vec<String>,
}

/// A way to run it.
struct Way {
    name: String,
    command: Vec<String>,
}

/// Runs the job; the status is the command's.
pub fn main(arguments: Vec<OsString>) -> Result<u8> {
    let Some(wanted) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(0);
    };
    build::build_all()?;
    let root = match &wanted.root {
        Some(root) => root.canonicalize().with_context(|| format!("--root {}", root.display()))?,
        None => fetch::debian_root()?,
    };
    let kernel = fetch::kernel()?;
    let microvm = workspace::product(build::MICROVM)?;
    let mut files = vec![
        microvm.clone(),
        workspace::product(build::MICROVM_INIT)?,
        apt::file(Path::new(VIRTIOFSD), "qemu-system-common")?,
        kernel.vmlinuz.clone(),
    ];
    files.extend(MODULES.map(|name| kernel.modules.join("kernel").join(format!("{name}.ko"))));
    let mut kernels = vec![("Debian's kernel", kernel.vmlinuz.clone())];
    if wanted.small_kernel {
        let small = kernel::build()?;
        files.push(small.vmlinux.clone());
        kernels.push(("the small kernel", small.vmlinux));
    }
    let unshare = apt::tool("unshare", "util-linux")?;
    files.push(unshare.clone());
    let mut ways = Vec::new();
    for (name, kernel) in kernels {
        let mut command = words([microvm.as_path(), "run".as_ref(), "--kernel".as_ref(), &kernel])?;
        command.extend(words([root.as_path()])?);
        ways.push(Way { name: format!("microvm run, {name}"), command });
    }
    let mut container = words([unshare.as_path()])?;
    container.extend(CONTAINER.map(str::to_owned));
    container.extend(words([root.as_path()])?);
    ways.push(Way { name: "a container (unshare)".into(), command: container });
    for way in &mut ways {
        way.command.extend(wanted.command.iter().cloned());
    }
    report(&in_lab(&ways, files, root)?)
}

fn words<const N: usize>(paths: [&Path; N]) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is not UTF-8");
    paths.into_iter().map(text).collect()
}

fn parse(arguments: Vec<OsString>) -> Result<Option<Wanted>> {
    use lexopt::prelude::{Long, Short, Value, ValueExt as _};
    let mut wanted = Wanted { root: None, small_kernel: false, command: Vec::new() };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("root") => wanted.root = Some(parser.value()?.into()),
            Long("small-kernel") => wanted.small_kernel = true,
            Long("help") | Short('h') => return Ok(None),
            Value(program) => {
                wanted.command.push(program.string()?);
                for word in parser.raw_args()? {
                    wanted.command.push(word.string()?);
                }
            }
            _ => return Err(argument.unexpected()).context("see cargo xtask run --help"),
        }
    }
    if wanted.command.is_empty() {
        wanted.command = COMMAND.map(str::to_owned).into();
    }
    Ok(Some(wanted))
}

/// What became of each way.
fn in_lab(ways: &[Way], files: Vec<PathBuf>, root: PathBuf) -> Result<Vec<Outcome>> {
    let plan = workspace::target("run")?.join("plan.json");
    let ways: Value = ways.iter().map(|way| json!([way.name, way.command])).collect();
    workspace::replace(&plan, |partial| fs::write(partial, ways.to_string()))?;
    let program = std::env::current_exe().context("finding this program")?;
    let mut lab_run = LabRun::new([program.into_os_string(), "stopwatch".into(), (&plan).into()]);
    lab_run.icount = true;
    lab_run.memory_mib = MEMORY_MIB;
    for host in files.into_iter().chain([plan]) {
        lab_run.files.push(Carried { guest: host.clone(), host });
    }
    lab_run.trees.push(Carried { guest: root.clone(), host: root });
    let outcome = lab::capture(&lab_run)?;
    if outcome.status != 0 {
        bail!("the run in the lab ended with status {}", outcome.status);
    }
    let report: Value =
        serde_json::from_slice(&outcome.stdout).context("reading what the lab saw")?;
    let rows = report.as_array().context("the lab's report is no list")?;
    rows.iter()
        .map(|row| Outcome::from_json(row).context("the lab's report is not whole"))
        .collect()
}

/// How a way ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    name: String,
    /// Virtual nanoseconds from the start to the first byte of output, and to the end.
    first_byte_ns: Option<u64>,
    end_ns: u64,
    status: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn to_json(&self) -> Value {
        json!([self.name, self.first_byte_ns, self.end_ns, self.status, self.stdout, self.stderr])
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |index: usize| value[index].as_str().map(str::to_owned);
        Some(Self {
            name: text(0)?,
            first_byte_ns: value[1].as_u64(),
            end_ns: value[2].as_u64()?,
            status: value[3].as_i64().and_then(|status| i32::try_from(status).ok())?,
            stdout: text(4)?,
            stderr: text(5)?,
        })
    }
}

/// Prints what the command said and what each way took; its status, which is the same for all.
fn report(outcomes: &[Outcome]) -> Result<u8> {
    let first = outcomes.first().context("the lab ran nothing")?;
    print!("{}", first.stdout);
    eprint!("{}", first.stderr);
    println!("{:<36} {:>14} {:>10} {:>7}", "virtual ms to", "first byte", "end", "status");
    for Outcome { name, first_byte_ns, end_ns, status, stdout, stderr } in outcomes {
        let ms = |ns: u64| format!("{}.{:02}", ns / 1_000_000, ns / 10_000 % 100);
        let byte = first_byte_ns.map_or_else(|| "-".into(), ms);
        println!("{name:<36} {byte:>14} {:>10} {status:>7}", ms(*end_ns));
        if (status, stdout, stderr) != (&first.status, &first.stdout, &first.stderr) {
            bail!("{name} said something else than {}: {stdout}{stderr}", first.name);
        }
    }
    Ok(u8::try_from(first.status).unwrap_or(u8::MAX))
}

/// `xtask stopwatch PLAN`: what `run` runs in the lab.
pub fn stopwatch(arguments: &[OsString]) -> Result<()> {
    let [plan] = arguments else { bail!("stopwatch is a part of run: run cargo xtask run") };
    let text = fs::read_to_string(plan).context("reading the plan")?;
    let plan: Vec<(String, Vec<String>)> = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|plan| ways(&plan))
        .context("no plan")?;
    let mut outcomes = Vec::new();
    for (name, command) in plan {
        eprintln!("run: {name}");
        // The first time, files are read into memory, and a kernel into its cache.
        time(&name, &command)?;
        outcomes.push(time(&name, &command)?.to_json());
    }
    println!("{}", Value::from(outcomes));
    Ok(())
}

fn ways(plan: &Value) -> Option<Vec<(String, Vec<String>)>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let way = |way: &Value| {
        let command = way[1].as_array()?.iter().map(text).collect::<Option<_>>()?;
        Some((text(&way[0])?, command))
    };
    plan.as_array()?.iter().map(way).collect()
}

fn time(name: &str, command: &[String]) -> Result<Outcome> {
    let (program, arguments) = command.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let since = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let mut output = child.stdout.take().context("its output")?;
    // Whoever fills one pipe waits, so both are read at once.
    let mut errors = child.stderr.take().context("its errors")?;
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        errors.read_to_end(&mut bytes).map(|_| bytes)
    });
    let (mut stdout, mut first_byte_ns, mut piece) = (Vec::new(), None, [0; 4096]);
    loop {
        let count = output.read(&mut piece).context("reading its output")?;
        if count == 0 {
            break;
        }
        first_byte_ns = first_byte_ns.or_else(|| Some(since()));
        stdout.extend(piece.get(..count).unwrap_or_default());
    }
    let status = child.wait().context("waiting for its end")?;
    let end_ns = since();
    let stderr = errors.join().map_err(|_| anyhow!("reading its errors"))?;
    let stderr = stderr.context("reading its errors")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = status.code().unwrap_or(-1);
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    Ok(Outcome { name: name.into(), first_byte_ns, end_ns, status, stdout, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_comes_back_as_it_was_written() {
        // More than a pipe holds.
        let script = "head -c 100000 /dev/zero >&2; echo out; exit 3";
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        let outcome = time("x", &command).unwrap();
        assert_eq!((outcome.status, outcome.stdout.as_str()), (3, "out\n"));
        assert!(outcome.first_byte_ns.is_some_and(|first| first <= outcome.end_ns));
        assert_eq!(Outcome::from_json(&outcome.to_json()), Some(outcome));
        assert_eq!(ways(&json!([["x", ["a", 1]]])), None);
    }

    #[test]
    fn what_follows_the_command_is_its_own() {
        let parse = |words: &[&str]| parse(words.iter().map(OsString::from).collect()).unwrap();
        let wanted = parse(&["--root", "/x", "ls", "--root", "y"]).unwrap();
        assert_eq!(wanted.command, ["ls", "--root", "y"]);
        assert_eq!(parse(&["--", "-x"]).unwrap().command, ["-x"]);
        assert_eq!(parse(&[]).unwrap().command, COMMAND);
        assert!(parse(&["--help"]).is_none());
    }
}
