//! Things that are not built here: kernels, other boot images, QEMU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use vmm::kernel_cache::unpack::unpack;

use crate::{apt, build, process, workspace};

/// Packages that depend on the newest kernel for virtual machines: Debian's, Ubuntu's.
const META_PACKAGES: [&str; 3] =
    ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic"];

/// Packages that depend on the newest kernel for any machine, likewise.
const STANDARD_META_PACKAGES: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];

/// An unmodified kernel out of a distribution's package.
#[derive(Debug)]
pub struct Kernel {
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Its modules' directory.
    pub modules: PathBuf,
    /// Its release, as `uname -r` prints it.
    pub release: String,
}

/// The kernel, fetched when it is not there. To fetch the newest: remove `target/cache/kernel`.
pub fn kernel() -> Result<Kernel> {
    let directory = cached("kernel", |partial| {
        for package in kernel_packages()? {
            let file = apt::download(&package, partial)?;
            process::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(partial))?;
            fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        }
        find_kernel(partial).map(drop)
    })?;
    find_kernel(&directory)
}

/// The image of the kernel for any machine. To fetch the newest: remove
/// `target/cache/kernel-standard`.
pub fn standard_kernel() -> Result<PathBuf> {
    let directory = cached("kernel-standard", |partial| {
        let package = image_package(&STANDARD_META_PACKAGES)?;
        apt::extract(&package, "./boot/vmlinuz-*", partial)?;
        find_release(partial).map(drop)
    })?;
    Ok(directory.join("boot").join(format!("vmlinuz-{}", find_release(&directory)?)))
}

/// The distribution's kernel sources. To fetch the newest: remove `target/cache/kernel-source`.
pub fn kernel_source() -> Result<PathBuf> {
    let directory = cached("kernel-source", |partial| {
        let is_source = |name: &String| name.starts_with("linux-source-") && has_digit(name);
        let find = || Ok(apt::dependencies("linux-source")?.into_iter().find(is_source));
        let package = known(find, || "linux-source".into())?;
        let archives = partial.join("archives");
        fs::create_dir(&archives).context("making a folder for archives")?;
        apt::extract(&package, "./usr/src/*.tar.*", &archives)?;
        let archive = find_archive(&archives)?;
        eprintln!("fetch: unpacking {package}");
        let mut tar = Command::new("tar");
        process::run(tar.arg("-xf").arg(&archive).arg("-C").arg(partial))?;
        fs::remove_dir_all(&archives).context("removing the archives")
    })?;
    let entries = fs::read_dir(&directory).context("reading the kernel's sources")?;
    let mut folders = entries.filter_map(|entry| Some(entry.ok()?.path()));
    folders.find(|path| path.join("Kconfig").is_file()).context("no sources in kernel-source")
}

/// The archive of the sources: a package may have patches beside it, and a link to it.
fn find_archive(directory: &Path) -> Result<PathBuf> {
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context("reading a package")? {
            let entry = entry.context("reading a package")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().context("reading a package")?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && name.starts_with("linux-source-") {
                return Ok(entry.path());
            }
        }
    }
    bail!("the package of the kernel's sources has none")
}

/// The ELF kernel within this bzImage, unpacked beside it when it is not there.
pub fn vmlinux(vmlinuz: &Path) -> Result<PathBuf> {
    let name = vmlinuz.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let release = name.strip_prefix("vmlinuz-").with_context(|| format!("{name}: no vmlinuz"))?;
    let path = vmlinuz.with_file_name(format!("vmlinux-{release}"));
    if !path.is_file() {
        eprintln!("fetch: unpacking {name}");
        let reading = || format!("reading {}", vmlinuz.display());
        let image = fs::read(vmlinuz).with_context(reading)?;
        let kernel = unpack(&image).with_context(reading)?;
        workspace::replace(&path, |partial| fs::write(partial, &kernel))?;
    }
    Ok(path)
}

/// iPXE as a kernel: it speaks the boot protocol's 16-bit entry.
pub fn ipxe() -> Result<PathBuf> {
    boot_image("ipxe", "boot/ipxe.lkrn")
}

/// Memtest86+ as a kernel.
pub fn memtest() -> Result<PathBuf> {
    boot_image("memtest86+", "boot/memtest86+x64.bin")
}

/// A shell and tools for guests, in one static program.
pub fn busybox() -> Result<PathBuf> {
    let folder =
        cached("busybox", |partial| apt::extract("busybox-static", "./*bin/busybox", partial))?;
    ["bin/busybox", "usr/bin/busybox"]
        .map(|place| folder.join(place))
        .into_iter()
        .find(|path| path.is_file())
        .context("busybox-static has no busybox")
}

/// A Debian of the least size, as a folder, by debootstrap.
pub fn debian_root() -> Result<PathBuf> {
    const SUITE: &str = "bookworm";
    let debootstrap = apt::tool("debootstrap", "debootstrap")?;
    cached("debian-root", |partial| {
        if !rustix::process::getuid().is_root() {
            bail!("debootstrap makes a root folder as root only: run this by sudo once");
        }
        eprintln!("fetch: Debian {SUITE} (some 200 MB)");
        let mut command = Command::new(&debootstrap);
        command.args(["--variant=minbase", SUITE]).arg(partial);
        process::run(command.stdin(Stdio::null()).stdout(std::io::stderr()))?;
        // Devices are the kernel's, and cannot be copied everywhere.
        let devices = partial.join("dev");
        fs::remove_dir_all(&devices)
            .and_then(|()| fs::create_dir(&devices))
            .context("emptying /dev")
    })
}

/// The virtiofsd that is written in Rust, which not all distributions have yet.
pub fn virtiofsd() -> Result<PathBuf> {
    const VERSION: &str = "1.14.0";
    const HEADERS: [(&str, &str); 2] =
        [("/usr/include/seccomp.h", "libseccomp-dev"), ("/usr/include/cap-ng.h", "libcap-ng-dev")];
    for (header, package) in HEADERS {
        apt::file(Path::new(header), package)?;
    }
    installed("virtiofsd", VERSION, "two minutes")
}

/// Who serves guests' sockets where the host's kernel does not.
pub fn vhost_device_vsock() -> Result<PathBuf> {
    installed("vhost-device-vsock", "0.3.0", "half a minute")
}

/// A program that is published as a crate.
fn installed(name: &str, version: &str, time: &str) -> Result<PathBuf> {
    let folder = cached(name, |partial| {
        eprintln!("fetch: building {name} {version} ({time})");
        let mut command = Command::new(build::cargo());
        command.args(["install", "--quiet", "--locked", "--version", version, name]);
        process::run(command.arg("--root").arg(partial).stdin(Stdio::null()))
    })?;
    Ok(folder.join("bin").join(name))
}

/// Programs that make and check ext4 file systems.
pub fn e2fsprogs() -> Result<[PathBuf; 2]> {
    Ok([apt::tool("mke2fs", "e2fsprogs")?, apt::tool("e2fsck", "e2fsprogs")?])
}

/// A QMP client that is not ours: Python's `qemu.qmp`, as a folder of modules.
pub fn qmp_client() -> Result<PathBuf> {
    const VERSION: &str = "qemu.qmp==0.0.6";
    let python = apt::tool("python3", "python3")?;
    cached("qmp-client", |partial| {
        let pip = |arguments: &[&str]| {
            let mut command = Command::new(&python);
            command.args(["-m", "pip", "--disable-pip-version-check"]).args(arguments);
            command.stdin(Stdio::null()).stdout(std::io::stderr());
            command
        };
        if !pip(&["--version"]).status().is_ok_and(|status| status.success()) {
            apt::install("python3-pip", "Python's pip")?;
        }
        eprintln!("fetch: {VERSION} for the tests of QMP");
        process::run(pip(&["install", "--quiet", "--target"]).arg(partial).arg(VERSION))
    })
}

/// One file of a package.
fn boot_image(package: &str, file: &str) -> Result<PathBuf> {
    let directory =
        cached(package, |partial| apt::extract(package, &format!("./{file}"), partial))?;
    Ok(directory.join(file))
}

/// A folder of the cache, filled when it is not there.
fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = workspace::target("cache")?;
    let directory = cache.join(name);
    let _lock = workspace::lock(&cache, "fetch: waiting for another xtask")?;
    if !directory.is_dir() {
        if process::find("apt-get").is_none() || process::find("dpkg-deb").is_none() {
            bail!("{name} is fetched by apt-get and dpkg-deb, which are not here");
        }
        // The directory appears whole: a fetch that was cut off leaves nothing behind it.
        let partial = cache.join(format!("{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).context("removing a fetch that was cut off")?;
        }
        fs::create_dir(&partial).with_context(|| format!("making {}", partial.display()))?;
        fill(&partial)?;
        fs::rename(&partial, &directory).with_context(|| format!("keeping the fetched {name}"))?;
    }
    Ok(directory)
}

/// QEMU's system emulator, installed when it is missing.
pub fn qemu() -> Result<PathBuf> {
    apt::tool("qemu-system-x86_64", "qemu-system-x86")
}

/// The packages of the kernel and its modules, which some distributions part.
fn kernel_packages() -> Result<Vec<String>> {
    let image = image_package(&META_PACKAGES)?;
    let modules = apt::dependencies(&image)?;
    let modules = modules.into_iter().filter(|name| name.starts_with("linux-modules-"));
    Ok(std::iter::once(image).chain(modules).collect())
}

/// The package of the kernel's image that one of these packages depends on.
fn image_package(metas: &[&str]) -> Result<String> {
    let resolve = || -> Result<Option<String>> {
        for meta in metas {
            let image = |name: &String| name.starts_with("linux-image-") && has_digit(name);
            if let Some(package) = apt::dependencies(meta)?.into_iter().find(image) {
                return Ok(Some(package));
            }
        }
        Ok(None)
    };
    known(resolve, || metas.join(", "))
}

/// What apt knows, asked once more after its lists were fetched.
fn known(
    resolve: impl Fn() -> Result<Option<String>>,
    names: impl Fn() -> String,
) -> Result<String> {
    if let Some(package) = resolve()? {
        return Ok(package);
    }
    apt::update()?;
    resolve()?.with_context(|| format!("apt knows none of {}", names()))
}

fn has_digit(name: &str) -> bool {
    // A versioned package, not another meta package.
    name.split('-').any(|part| part.starts_with(|c: char| c.is_ascii_digit()))
}

fn find_kernel(directory: &Path) -> Result<Kernel> {
    let release = find_release(directory)?;
    let vmlinuz = directory.join("boot").join(format!("vmlinuz-{release}"));
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| directory.join(place).join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("no modules of {release} in {}", directory.display()))?;
    Ok(Kernel { vmlinuz, modules, release })
}

/// The release of the kernel whose image is in this folder.
fn find_release(directory: &Path) -> Result<String> {
    let boot = directory.join("boot");
    let names = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    names
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .with_context(|| format!("no kernel in {}", boot.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_versioned_package_is_told_from_a_meta_package() {
        assert!(has_digit("linux-image-6.1.0-56-cloud-amd64"));
        assert!(!has_digit("linux-image-cloud-amd64"));
        assert!(!has_digit("linux-image-virtual"));
    }
}
