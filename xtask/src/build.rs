//! Builds: freestanding images and static programs, all in `target/dist`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::image::{self, Image, Layout};
use crate::initramfs::Archive;
use crate::{process, workspace};

const FREESTANDING_TARGET: &str = "x86_64-unknown-none";
const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";
const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The image that `-bios` takes.
pub const BIOS: &str = "bios-microvm.bin";
/// The freestanding test kernel; `payload.elf` is the same for PVH.
pub const PAYLOAD: &str = "payload.bzImage";
/// The initramfs of the tested Linux guest.
pub const INITRAMFS: &str = "initramfs.cpio";
/// The hash of the initramfs's files, as the guest's init prints it.
pub const INITRAMFS_HASH: &str = "initramfs.hash";
/// Work for a guest's devices.
pub const GUEST_WORK: &str = "guest-work";
/// The guest's init, alone.
pub const GUEST_INIT: &str = "guest-init";
/// Pid 1 of the guests of `microvm run`, which finds it beside itself.
pub const MICROVM_INIT: &str = "microvm-init";
/// The VMM.
pub const MICROVM: &str = "microvm";

/// Builds every product.
pub fn build_all() -> Result<()> {
    build_firmware()?;
    build_payload()?;
    build_vmm()?;
    build_lab_init()?;
    build_static(MICROVM_INIT, MICROVM_INIT, MICROVM_INIT)?;
    build_static("guest", "work", GUEST_WORK)?;
    build_initramfs().map(drop)
}

/// Builds the VMM.
pub fn build_vmm() -> Result<PathBuf> {
    build_static("vmm", "microvm", "microvm")
}

/// Builds pid 1 of the lab's Linux.
pub fn build_lab_init() -> Result<PathBuf> {
    build_static("guest", "lab-init", "lab-init")
}

/// Builds the guest's init and packs it.
pub fn build_initramfs() -> Result<PathBuf> {
    let init = build_static("guest", "init", GUEST_INIT)?;
    let path = workspace::product(INITRAMFS)?;
    let archive = Archive::for_guest(&init)?;
    workspace::replace(&path, |partial| archive.write(partial))?;
    let hash = archive.tree_hash()?;
    workspace::replace(&workspace::product(INITRAMFS_HASH)?, |partial| fs::write(partial, &hash))?;
    Ok(path)
}

/// Builds the BIOS: 64 KiB that end where the CPU starts.
pub fn build_firmware() -> Result<PathBuf> {
    let elf = build_freestanding("firmware")?;
    let layout = Layout {
        base: abi::layout::BIOS_LOW.start(),
        size: Some(abi::layout::BIOS_SIZE),
        fill: 0xff,
    };
    let image = flatten(&elf, layout)?;
    let reset_vector = image.bytes.len().checked_sub(16).and_then(|at| image.bytes.get(at));
    // A relative jump, near or short: there is room for nothing else.
    if !matches!(reset_vector, Some(0xe9 | 0xeb)) {
        bail!("{}: no jump at the reset vector", workspace::shown(&elf));
    }
    let path = write_image(BIOS, &image.bytes)?;
    println!("{}", workspace::shown(&path));
    println!("{} of {} bytes used", image.used, image.bytes.len());
    println!("sha256 {}", sha256(&image.bytes));
    Ok(path)
}

/// Builds the test kernel, the linker script of which lays out a bzImage: its setup
/// code comes before what is loaded at 1 MiB. The ELF file is a PVH kernel.
pub fn build_payload() -> Result<PathBuf> {
    let elf = build_freestanding("payload")?;
    let base = abi::layout::HIGH_RAM_START;
    let loaded = flatten(&elf, Layout { base, size: None, fill: 0 })?;
    let file = fs::read(&elf).with_context(|| format!("reading {}", workspace::shown(&elf)))?;
    let bytes = [image::front(&file)?, &loaded.bytes].concat();
    write_image(PAYLOAD, &bytes)
}

fn flatten(elf: &Path, layout: Layout) -> Result<Image> {
    let file = fs::read(elf).with_context(|| format!("reading {}", workspace::shown(elf)))?;
    image::flatten(&file, layout).with_context(|| format!("{}", workspace::shown(elf)))
}

fn write_image(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = workspace::product(name)?;
    workspace::replace(&path, |partial| fs::write(partial, bytes))?;
    Ok(path)
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Builds a package's program of the same name for the bare machine; its ELF file, kept for
/// debuggers.
fn build_freestanding(package: &str) -> Result<PathBuf> {
    eprintln!("build: {package}");
    let built = Build::freestanding(package)?.run("firmware")?;
    publish(&built, &format!("{package}.elf"))
}

/// Runs clippy over a package as it is built for the bare machine.
pub fn lint_freestanding(package: &str) -> Result<()> {
    let mut cargo = Build::freestanding(package)?.cargo("clippy", "firmware")?;
    process::run(cargo.args(["--", "-D", "warnings"]))
}

/// Builds one program that needs nothing of the system it runs on.
pub fn build_static(package: &str, bin: &str, product: &str) -> Result<PathBuf> {
    eprintln!("build: {product}");
    let (target, flags) = if has_target(STATIC_TARGET) {
        // Relocations of a program that may lie anywhere, in a thirtieth of the room (RELR).
        (STATIC_TARGET, vec!["-Clink-arg=-Wl,-z,pack-relative-relocs".into()])
    } else {
        eprintln!("build: no target {STATIC_TARGET}; linking {HOST_TARGET} statically");
        (HOST_TARGET, vec!["-Ctarget-feature=+crt-static".into()])
    };
    let build = Build { package, bin, target, profile: "release", flags };
    publish(&build.run("static")?, product)
}

struct Build<'a> {
    package: &'a str,
    bin: &'a str,
    target: &'a str,
    profile: &'a str,
    flags: Vec<OsString>,
}

impl<'a> Build<'a> {
    /// A program for the bare machine, of the same name as its package.
    fn freestanding(package: &'a str) -> Result<Self> {
        let target = FREESTANDING_TARGET;
        if !has_target(target) {
            bail!("{package} is built for the bare machine: run rustup target add {target}");
        }
        let flags = vec![
            // Marks the freestanding build in the source: `cfg(firmware)`.
            "--cfg=firmware".into(),
            "-Crelocation-model=static".into(),
            "-Crelro-level=off".into(),
            "-Cforce-unwind-tables=no".into(),
        ];
        Ok(Self { package, bin: package, target, profile: "firmware", flags })
    }

    /// Builds below `target/<folder>`; the program's path there.
    fn run(self, folder: &str) -> Result<PathBuf> {
        process::run(&mut self.cargo("build", folder)?)?;
        Ok(workspace::target(folder)?.join(self.target).join(self.profile).join(self.bin))
    }

    fn cargo(&self, job: &str, folder: &str) -> Result<Command> {
        let mut cargo = Command::new(cargo());
        cargo.args([job, "--quiet", "--package", self.package, "--bin", self.bin]);
        cargo.args(["--profile", self.profile, "--target", self.target]);
        cargo.arg("--target-dir").arg(workspace::target(folder)?).current_dir(workspace::root());
        // Of all sources of flags the one that no other shadows.
        let flags: Vec<_> = self.flags.iter().cloned().chain(remap_flags()?).collect();
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()));
        Ok(cargo)
    }
}

fn publish(built: &Path, product: &str) -> Result<PathBuf> {
    let path = workspace::product(product)?;
    workspace::replace(&path, |partial| fs::copy(built, partial).map(drop))?;
    Ok(path)
}

/// The cargo that runs us, so that one toolchain builds everything.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// Makes a build the same wherever its sources lie: panic messages name source files.
fn remap_flags() -> Result<Vec<OsString>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    let sysroot = process::output(rustc().args(["--print", "sysroot"]))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    let version = process::output(rustc().arg("-vV"))?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
    // The name that the library's sources have where they are not installed.
    let library_name = format!("/rustc/{}", commit.unwrap_or("unknown"));

    // The last match wins: the checkout may lie in the home directory.
    let mut pairs = vec![(home.clone(), "/cargo".to_owned())];
    let registry = fs::read_dir(home.join("registry/src"));
    pairs.extend(registry.into_iter().flatten().filter_map(|entry| {
        // One folder per registry, named after its address: not for the image to know.
        Some((entry.ok()?.path(), "/cargo/registry".to_owned()))
    }));
    pairs.push((library, library_name));
    pairs.push((workspace::root().to_owned(), "/microvm".to_owned()));
    let flag = |(from, to): (PathBuf, String)| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flag
    };
    Ok(pairs.into_iter().map(flag).collect())
}

/// Whether the target's library is installed, after trying to.
fn has_target(target: &str) -> bool {
    let installed = || {
        let mut command = rustc();
        let folder =
            process::output(command.args(["--print", "target-libdir", "--target", target]));
        folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
    };
    if installed() {
        return true;
    }
    eprintln!("build: adding the target {target}");
    let added = process::output(Command::new("rustup").args(["target", "add", target]));
    if let Err(error) = added {
        eprintln!("build: {error:#}");
    }
    installed()
}
