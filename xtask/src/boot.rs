//! `cargo xtask boot`: the main job, a Linux kernel to its init by both paths.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lexopt::{Arg, Parser, ValueExt};

use crate::ground::{Choice, Ground};
use crate::lab::{self, Carried, LabRun};
use crate::measure::{self, Guest};
use crate::{build, fetch, workspace};

const USAGE: &str = "\
usage: cargo xtask boot [OPTIONS]

Builds all, boots an unmodified Linux kernel to its init through bios-microvm.bin and directly, and
prints what it saw and how long each stage took.

  --host auto|kvm|lab  where to run: this machine's KVM, the nested lab, or the first that works
  --kernel FILE        a bzImage (the distribution's kernel for virtual machines, fetched once)
  --initrd FILE        an initramfs (our own, whose init prints facts and powers off)
  --append STRING      the kernel's command line (\"console=ttyS0 quiet\")
  --memory SIZE        the guest's memory, as microvm -m takes it (256M)
  --timeline           show each stage of both starts
  --microvm WORD       one more word for microvm's command line; may be given more than once
";

/// What the command line asks for.
struct Options {
    host: Choice,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    append: String,
    memory: String,
    more: Vec<OsString>,
    timeline: bool,
}

/// Runs the job.
pub fn main(arguments: Vec<OsString>) -> Result<()> {
    let Some(options) = parse(arguments)? else {
        print!("{USAGE}");
        return Ok(());
    };
    build::build_all()?;
    let kernel = match options.kernel {
        Some(kernel) => existing(kernel, "--kernel")?,
        None => fetch::kernel()?.vmlinuz,
    };
    let initrd = match options.initrd {
        Some(initrd) => existing(initrd, "--initrd")?,
        None => workspace::product(build::INITRAMFS)?,
    };
    let Options { append, memory, more, timeline, .. } = options;
    let guest = Guest { kernel, initrd, append, memory, more, timeline };
    match options.host.ground(&workspace::product(build::MICROVM)?)? {
        Ground::Kvm => measure::measure(&guest, Ground::Kvm),
        Ground::Lab => measure_in_lab(&guest),
    }
}

/// Runs this very program in the lab, so that both grounds are measured by the same code.
fn measure_in_lab(guest: &Guest) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = vec![program.into_os_string(), "measure".into()];
    command.extend(guest.arguments());
    let mut lab_run = LabRun::new(command);
    lab_run.icount = true;
    let products = [build::MICROVM, build::BIOS].map(workspace::product);
    let products = products.into_iter().collect::<Result<Vec<_>>>()?;
    for file in products.iter().chain([&guest.kernel, &guest.initrd]) {
        lab_run.files.push(Carried { host: file.clone(), guest: file.clone() });
    }
    let outcome = lab::capture(&lab_run)?;
    print!("{}", String::from_utf8_lossy(&outcome.stdout));
    match outcome.status {
        0 => Ok(()),
        status => bail!("the boot in the lab ended with status {status}"),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Option<Options>> {
    let mut options = Options {
        host: Choice::Auto,
        kernel: None,
        initrd: None,
        append: "console=ttyS0 quiet".into(),
        memory: "256M".into(),
        more: Vec::new(),
        timeline: false,
    };
    let mut parser = Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("host") => options.host = Choice::parse(&parser.value()?)?,
            Arg::Long("kernel") => options.kernel = Some(parser.value()?.into()),
            Arg::Long("initrd") => options.initrd = Some(parser.value()?.into()),
            Arg::Long("append") => options.append = parser.value()?.string()?,
            Arg::Long("memory") => options.memory = parser.value()?.string()?,
            Arg::Long("microvm") => options.more.push(parser.value()?),
            Arg::Long("timeline") => options.timeline = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    Ok(Some(options))
}

/// The file's absolute path: in the lab, files lie where they lie here.
fn existing(path: PathBuf, option: &str) -> Result<PathBuf> {
    Path::new(&path).canonicalize().with_context(|| format!("{option} {}", path.display()))
}
