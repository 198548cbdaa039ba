//! `cargo xtask build-kernel`: a small Linux for microVMs.
//!
//! From the distribution's sources. What it can do stands in `docs/guest-kernel.config`, and
//! nothing else is built in.

use std::fs;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, bail};

use crate::{apt, fetch, process, workspace};

/// The bzImage, and the same kernel as an ELF file with a PVH note, below `target/guest-kernel`.
const FORMS: [(&str, &str); 2] = [("arch/x86/boot/bzImage", "bzImage"), ("vmlinux", "vmlinux")];
/// What a build says of its release.
const RELEASE: &str = "include/config/kernel.release";
/// Our fragment of a configuration, in the checkout.
const FRAGMENT: &str = "docs/guest-kernel.config";
/// What a kernel's build needs beside a compiler: programs and their packages.
const TOOLS: [(&str, &str); 7] = [
    ("make", "make"),
    ("strip", "binutils"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("lz4", "lz4"),
];
/// What its objtool is compiled with.
const LIBELF: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// A kernel in both its forms.
#[derive(Debug)]
pub struct GuestKernel {
    /// What most boot loaders take.
    pub bzimage: PathBuf,
    /// The ELF file with a PVH note.
    pub vmlinux: PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
}

/// `cargo xtask build-kernel`: prints where the kernel is and how large.
pub fn main() -> Result<()> {
    let GuestKernel { bzimage, vmlinux, release: _ } = build()?;
    for path in [bzimage, vmlinux] {
        let size = fs::metadata(&path).map_or(0, |found| found.len());
        println!("{} ({size} bytes)", workspace::shown(&path));
    }
    Ok(())
}

/// Builds the kernel. Only what changed is compiled again.
pub fn build() -> Result<GuestKernel> {
    build_with("guest-kernel", &[])
}

/// Builds the kernel with other values of some options, into `target/PRODUCTS`.
pub fn build_with(products: &str, changes: &[&str]) -> Result<GuestKernel> {
    for (program, package) in TOOLS {
        apt::tool(program, package)?;
    }
    apt::file(Path::new(LIBELF.0), LIBELF.1)?;
    let source = fetch::kernel_source()?;
    // What is changed does not make the usual kernel's next build any longer.
    let output = workspace::target(if changes.is_empty() { "kernel" } else { "kernel-changed" })?;
    let _lock = workspace::lock(&output, "build-kernel: waiting for another run to end")?;
    configure(&source, &output, changes)?;
    eprintln!("build: a kernel, which takes minutes the first time");
    process::run(make(&source, &output).args(["bzImage", "vmlinux"]))?;
    let products = workspace::target(products)?;
    let [bzimage, vmlinux] =
        FORMS.map(|(built, product)| (output.join(built), products.join(product)));
    let (built, product) = &bzimage;
    workspace::replace(product, |partial| fs::copy(built, partial).map(drop))?;
    // Nobody starts faster by symbols, and QEMU sorts them at each start.
    let (built, product) = &vmlinux;
    let strip = |partial: &Path| {
        let mut strip = Command::new("strip");
        let status = strip.arg("--strip-all").arg("-o").arg(partial).arg(built).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("strip: {status}"))) }
    };
    workspace::replace(product, strip)?;
    let release = fs::read_to_string(output.join(RELEASE)).with_context(|| RELEASE.to_owned())?;
    Ok(GuestKernel { bzimage: bzimage.1, vmlinux: vmlinux.1, release: release.trim().into() })
}

/// `make` for this kernel; the same sources and compiler give the same kernel.
fn make(source: &Path, output: &Path) -> Command {
    let mut make = Command::new("make");
    let jobs = available_parallelism().map_or(1, NonZero::get);
    make.args(["--silent", &format!("--jobs={jobs}"), "-C"]).arg(source);
    make.arg(format!("O={}", output.display())).arg("ARCH=x86_64");
    make.env("KBUILD_BUILD_TIMESTAMP", "2026-01-01");
    make.env("KBUILD_BUILD_USER", "microvm").env("KBUILD_BUILD_HOST", "microvm");
    make.env("KBUILD_BUILD_VERSION", "1").env_remove("MAKEFLAGS");
    make
}

/// Makes the configuration that has what the fragment asks for, and whatever that needs.
fn configure(source: &Path, output: &Path, changes: &[&str]) -> Result<()> {
    let asked = fs::read_to_string(workspace::root().join(FRAGMENT));
    let asked = change(&asked.with_context(|| format!("reading {FRAGMENT}"))?, changes);
    let fragment = output.join("fragment.config");
    workspace::replace(&fragment, |partial| fs::write(partial, &asked))?;
    process::run(make(source, output).arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment))?;
    let made = fs::read_to_string(output.join(".config")).context("reading .config")?;
    // What depends on a changed option goes with it.
    let wanted = if changes.is_empty() { asked } else { changes.join("\n") };
    let missing = missing(&wanted, &made);
    if !missing.is_empty() {
        bail!("{FRAGMENT}: this kernel does not take {}", missing.join(", "));
    }
    Ok(())
}

/// The fragment with these lines in place of those for the same options.
fn change(fragment: &str, changes: &[&str]) -> String {
    let option = |line: &str| line.split('=').next().map(str::to_owned);
    let is_kept = |line: &&str| !changes.iter().any(|change| option(change) == option(line));
    let lines = fragment.lines().filter(is_kept).chain(changes.iter().copied());
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The lines of a fragment that did not become part of the configuration.
fn missing<'a>(asked: &'a str, made: &str) -> Vec<&'a str> {
    let options = asked.lines().filter(|line| line.starts_with("CONFIG_"));
    let is_missing = |option: &&str| match option.strip_suffix("=n") {
        Some(name) => made.lines().any(|line| line == format!("{name}=y")),
        None => !made.lines().any(|line| line == *option),
    };
    options.filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_does_not_take_is_named() {
        let asked = "# Why.\nCONFIG_A=y\nCONFIG_B=64\nCONFIG_C=y\n";
        let made = "CONFIG_A=y\nCONFIG_B=6\n# CONFIG_C is not set\nCONFIG_AC=y\n";
        assert_eq!(missing(asked, made), ["CONFIG_B=64", "CONFIG_C=y"]);
        assert!(missing(made, made).is_empty());
        assert_eq!(missing("CONFIG_A=n\nCONFIG_C=n\n", made), ["CONFIG_A=n"]);
    }

    #[test]
    fn a_change_takes_the_place_of_what_it_changes() {
        let fragment = "# A.\nCONFIG_A=y\nCONFIG_AB=y\n";
        let changed = change(fragment, &["CONFIG_A=n", "CONFIG_C=y"]);
        assert_eq!(changed, "# A.\nCONFIG_AB=y\nCONFIG_A=n\nCONFIG_C=y\n");
        assert_eq!(change(fragment, &[]), fragment);
    }
}
